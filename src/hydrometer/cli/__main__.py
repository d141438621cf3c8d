"""`python -m hydrometer.cli`."""

from hydrometer.cli import main

main()
