"""Weakly supervised semantic segmentation from image-level labels, around Boundary-Enhanced Co-Training."""

__version__ = "0.1.0"
