"""Draw, fit, judge, compare: pure functions, artifact in, artifact out."""
