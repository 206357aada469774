"""The audit report of a repair: facts, page, and the files that hold them."""
