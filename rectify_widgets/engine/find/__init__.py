"""Which layers are responsible, which inputs carry the corruption, and where else it works."""
