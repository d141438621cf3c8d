"""What the stages of a chain of language models take."""
