"""Figures: what is computed from draws and log-probabilities."""
