"""Measurements on networks and data that do not ship.  Imports the engine and the cases."""
