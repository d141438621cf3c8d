"""Comparisons of judged cells: contrasts, their covariance, the decision."""
