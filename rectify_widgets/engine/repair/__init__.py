"""Removing a behaviour: round after round of edits, their history, and why it ended."""
