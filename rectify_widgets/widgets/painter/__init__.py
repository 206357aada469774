"""`MaskPainter`: what should not be there is painted out, and the clean counterparts come back."""
