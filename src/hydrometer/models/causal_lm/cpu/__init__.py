"""Compiled kernels and the Llama-type forward pass on the CPU."""
