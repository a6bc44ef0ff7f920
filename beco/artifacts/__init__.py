"""Files that stages hand on: stores, pseudo-labels, shards, and what they depend on."""
