"""What would spoil a run, found before anything is made."""
