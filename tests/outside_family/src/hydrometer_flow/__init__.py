"""Normalizing flows as a family of hydrometer: truth (a mixture) -> teacher (a flow) -> student (a flow)."""
