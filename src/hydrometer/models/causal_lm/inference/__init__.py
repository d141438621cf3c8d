"""Drawing from an opened network and scoring under it."""
