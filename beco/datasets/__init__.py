"""From a dataset's own layout to the one `manifest.csv` that every later stage reads."""
