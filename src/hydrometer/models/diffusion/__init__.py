"""Deterministic diffusion samplers over the plane, whose laws are known exactly."""
