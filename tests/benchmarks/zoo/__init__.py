"""The zoo: attacks of the literature, patches or not, and the networks trained with them."""
