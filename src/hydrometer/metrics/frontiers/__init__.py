"""Precision-recall frontiers, typicality and their oracles."""
