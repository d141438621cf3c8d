"""What is on disk: artifacts, records, the lock. Knows nothing of models."""
