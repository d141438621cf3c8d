"""Errors, specifications, random streams, estimates: what every room uses."""
