"""Stage one: image-level labels to pseudo-labels with confidence."""
