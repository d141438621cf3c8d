"""Prompts and text: read, rendered, encoded."""
