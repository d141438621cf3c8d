"""Fitting a level."""
