"""`SuspicionViewer`: what a search for unreliable behaviours found, and the references around it."""
