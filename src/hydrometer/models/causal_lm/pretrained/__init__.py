"""Models trained elsewhere: described, opened, adopted."""
