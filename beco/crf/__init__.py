"""The dense CRF: permutohedral lattice and mean field."""
