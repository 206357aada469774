"""`HistoryViewer`: every version of a model under repair."""
