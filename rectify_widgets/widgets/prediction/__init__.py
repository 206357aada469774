"""`PredictionViewer`: what a model predicts, before and after its edits."""
