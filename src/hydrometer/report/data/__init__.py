"""What figures, tables and words are made of: results read into records, and what is computed from them."""
