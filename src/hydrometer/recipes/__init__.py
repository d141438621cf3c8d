"""Specifications that ship with the package."""
