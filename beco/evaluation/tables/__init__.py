"""Tables of runs, labels and comparisons."""
