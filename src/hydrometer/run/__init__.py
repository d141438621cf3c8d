"""From a specification to a plan of stages, and its execution."""
