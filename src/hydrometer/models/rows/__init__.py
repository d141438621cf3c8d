"""Rows that laws draw and fits read."""
