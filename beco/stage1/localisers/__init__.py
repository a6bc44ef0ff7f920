"""Localisers: from image-level labels to score maps."""
