"""Second moments, solving with them, and the rank-one edit of one layer."""
