"""Llama-type networks on an accelerator: fixed shapes that CUDA graphs replay, and packed rows."""
