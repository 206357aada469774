"""Pairs of samples, the corruption that they show, and inputs from whatever holds them."""
