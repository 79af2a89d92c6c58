"""From a table of one's own to a recipe: what its columns are, its faults, and its splits."""
