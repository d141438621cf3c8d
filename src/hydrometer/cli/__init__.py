"""The command line: parses, calls, prints; no arithmetic."""

from hydrometer.cli.commands import app, main

__all__ = ["app", "main"]
