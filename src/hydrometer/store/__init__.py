"""Artifacts, records and locks, on disk or in an object store. Knows nothing of models."""
