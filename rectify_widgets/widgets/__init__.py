"""The widgets: worker sessions, pure renderers, and one file for each widget."""
