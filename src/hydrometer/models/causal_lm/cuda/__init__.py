"""Llama-type networks on an accelerator: fixed shapes that CUDA graphs replay, and packed rows; kernels in Triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["has_kernels"]


def has_kernels(logits: Tensor) -> bool:
    """Whether Triton's kernels take these logits where they are: on CUDA, in float32 or bfloat16."""
    return logits.device.type == "cuda" and logits.element_size() < 8 and find_spec("triton") is not None
