"""What a run takes: operations, bytes, seconds and money."""
