"""Find, show and mend the layer behind an unreliable behaviour of an image classifier."""
