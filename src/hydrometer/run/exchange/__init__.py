"""Rows, models and scores that leave a run or come back into it."""
