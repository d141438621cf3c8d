"""What a run's folder says when it is done, and while it goes on."""
