"""Other programs' labels in, ours out."""
