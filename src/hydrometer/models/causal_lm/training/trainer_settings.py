"""A level's settings as the Trainer takes them."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import TrainingArguments

from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.training_spec import Training

__all__ = ["trainer_arguments"]


def trainer_arguments(t: Training, rows: int, lm: OpenedLM, seed: int, folder: str | Path | None) -> TrainingArguments:
    """Return the Trainer's own settings; `folder` is that of checkpoints, None where none are kept."""
    _, steps = t.steps(rows)
    # Rounded down: the first step of a linear warm-up has rate zero, which a short fit cannot afford.
    warmup = int(t.warmup_ratio * steps) if t.warmup_steps is None else min(t.warmup_steps, steps)
    decay = min(math.ceil(t.decay_ratio * steps), steps - warmup)
    stable = t.lr_scheduler_type == "warmup_stable_decay"
    arguments = TrainingArguments(
        # Made if missing, and not written into where nothing is kept; one of its own would stay behind a killed fit.
        output_dir=str(folder or Path(__file__).parent),
        num_train_epochs=t.num_train_epochs,
        max_steps=t.max_steps or -1,
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
