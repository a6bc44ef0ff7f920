"""Stage two: pseudo-labels to segmentation networks, by plain or robust training."""
