"""What a fit holds in memory."""
