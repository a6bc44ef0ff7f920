"""From score maps to pseudo-labels: threshold, CRF, IRN."""
