"""Reading and writing files that others may have written, or may be writing."""
