"""Results in tables, for the terminal and the page."""
