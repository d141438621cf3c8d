"""Specifications that are begun for a person: what the given files are, and what is written of it."""
