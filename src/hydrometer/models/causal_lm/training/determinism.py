"""Fits whose bits depend only on their request."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from hydrometer.core.errors import FitError, HydrometerError, PeerLostError, one_line
from hydrometer.models.causal_lm.training.distributed import lost_peer

__all__ = ["reproducible"]


@contextlib.contextmanager
def reproducible(seed: int) -> Generator[None]:
    """Use deterministic algorithms and seeded global generators; restore all on exit."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the Trainer seeds them)
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        # Filling new tensors with NaN is for debugging: it costs time and changes no result.
        settings.fill_uninitialized_memory = False
        try:
            yield
        except (HydrometerError, OSError):
            raise
        except Exception as e:  # torch's: out of memory, no deterministic form; a network's own, which may be any
            if isinstance(e, RuntimeError) and lost_peer(e):
                raise PeerLostError(f"another process of the fit ended: {e}") from e
            raise FitError(f"the fit failed: {one_line(str(e), 200) or type(e).__name__}") from e
        finally:
            settings.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
