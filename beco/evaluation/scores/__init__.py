"""Scores of label maps against masks."""
