"""What would spoil a chain of language models, found before it runs."""
