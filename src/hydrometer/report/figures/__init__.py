"""Figures: computed as plain records, drawn with matplotlib."""
