"""`AttributionViewer`: what a model looks at."""
