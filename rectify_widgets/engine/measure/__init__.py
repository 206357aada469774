"""How far a behaviour is from being removed, and how reliable a classifier is."""
