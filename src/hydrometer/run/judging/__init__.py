"""Judging models that exist, outside a run."""
