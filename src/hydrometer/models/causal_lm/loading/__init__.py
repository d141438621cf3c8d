"""Reading models' files: finding them, distrusting them, opening them."""
