"""Checks, progress, files and the processes that share a call.  Imports nothing of the package."""
