"""A network as body and head, and how it may be run."""
