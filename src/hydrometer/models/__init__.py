"""Laws and the families that make them."""
