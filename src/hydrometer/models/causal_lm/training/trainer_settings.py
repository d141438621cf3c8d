"""A level's settings as the Trainer takes them, and fits whose bits depend only on their request."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from hydrometer.core.errors import FitError, HydrometerError, PeerLostError, one_line
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.training.distributed import lost_peer
from hydrometer.models.causal_lm.training_spec import Training

__all__ = ["reproducible", "trainer_arguments"]


def trainer_arguments(
    t: Training, rows: int, lm: OpenedLM, seed: int, folder: str | Path | None, most: int | None = None
) -> TrainingArguments:
    """Return the Trainer's own settings; `folder` is that of checkpoints, None where none are kept.

    `most` bounds the steps of a fit that ends otherwise.
    """
    _, steps = t.steps(rows)
    # Rounded down: the first step of a linear warm-up has rate zero, which a short fit cannot afford.
    warmup = int(t.warmup_ratio * steps) if t.warmup_steps is None else min(t.warmup_steps, steps)
    decay = min(math.ceil(t.decay_ratio * steps), steps - warmup)
    stable = t.lr_scheduler_type == "warmup_stable_decay"
    arguments = TrainingArguments(
        # Made if missing, and not written into where nothing is kept; one of its own would stay behind a killed fit.
        output_dir=str(folder or Path(__file__).parent),
        num_train_epochs=t.num_train_epochs,
        max_steps=most or t.max_steps or -1,
        per_device_train_batch_size=t.per_device_train_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        optim=t.optim,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        max_grad_norm=t.max_grad_norm,
        lr_scheduler_type=t.lr_scheduler_type,
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if stable else {},
        warmup_steps=warmup,
        bf16=False,  # autocast is entered in the loss, where body and head are called
        seed=seed,
        data_seed=seed,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=lm.device.type != "cpu",
        remove_unused_columns=False,
        save_strategy="no" if folder is None or t.save_steps is None else "steps",
        save_steps=t.save_steps or 500,
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # Of several accelerators here the Trainer would take all, by threads: other batches than the specification's.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
    return arguments


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
