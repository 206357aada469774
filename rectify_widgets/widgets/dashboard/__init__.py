"""`RectificationDashboard`: the four viewers in one, with the buttons."""
