"""torch and transformers: whether they are installed, and what of them the bits of a result depend on."""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.util import find_spec

from hydrometer.core.errors import MissingDependencyError
from hydrometer.core.watching import doing

__all__ = ["needs_torch", "numerics"]


def needs_torch() -> None:
    """Raise MissingDependencyError where torch or transformers is not installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        what = "causal language models need torch and transformers"
        raise MissingDependencyError(what, fix="pip install 'hydrometer[lm]'")
    if "transformers" not in sys.modules:
        doing("importing torch and transformers")


def numerics(threads: int, device: str) -> dict[str, object]:
    """Return what equal bits depend on besides the inputs: versions, threads, processor class, device and its card."""
    import torch

    card: dict[str, object] = {}
    if device != "cpu" and torch.cuda.is_available():
        kernels = metadata.version("triton") if find_spec("triton") is not None else "none"
        card = {"card": torch.cuda.get_device_name(), "triton": kernels}
    return {
        **{package: metadata.version(package) for package in ("torch", "transformers", "tokenizers", "numba")},
        "threads": threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        **card,
    }
