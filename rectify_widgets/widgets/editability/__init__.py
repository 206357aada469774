"""`EditabilityViewer`: how much an edit of each layer helps."""
