"""The gallery is compared output by output, in tests/test_notebooks.py; here it would run once more,
and be compared by its verdicts alone."""

collect_ignore = ["02_widget_gallery.ipynb"]
