"""Which setting to take, from finished runs."""
