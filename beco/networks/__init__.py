"""Encoders, their weights, heads and segmenters."""
