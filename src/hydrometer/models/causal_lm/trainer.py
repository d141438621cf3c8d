"""Fits a level by maximum likelihood: transformers' Trainer turns the loop, the loss and the choice of epoch are ours.

Shapes: B rows, T positions, M answer tokens of a batch, D width, V ids.

    loss = - (1 / M) sum over answer tokens, the stop token among them, of log q(x_t | prompt, x_<t)        nats/token

Only answer positions meet the head, and their logits are never all there at once (`losses`). Padding is known by
length: an end-of-sequence token that also pads is learned like any other.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hydrometer.core.errors import FitError, InputError, LawMismatchError
from hydrometer.models.base import FitRequest, Fitted, Samples, Tick
from hydrometer.models.causal_lm import load
from hydrometer.models.causal_lm.initial import init_model
from hydrometer.models.causal_lm.law import CausalLaw
from hydrometer.models.causal_lm.losses import linear_cross_entropy
from hydrometer.models.causal_lm.model import CausalLM
from hydrometer.models.causal_lm.scorer import score
from hydrometer.models.causal_lm.spec import LevelSpec, Training
from hydrometer.models.sequences import Sequences
from hydrometer.models.training_rows import TrainingRows

__all__ = ["fit"]

_IGNORED = -100  # label of what is not learned, as everywhere in transformers


def fit(request: FitRequest) -> Fitted[CausalLaw]:
    """Fit a new model by maximum likelihood, deterministically for equal torch, processor class and threads.

    Raises
    ------
    FitError : another loss than mle, no rows, or a loss that is not finite.
    LawMismatchError : rows of other prompts than the truth's.
    """
    truth, level = _law(request.truth), request.level
    above = truth if request.teacher is None else _law(request.teacher)
    if not isinstance(level, LevelSpec):
        raise InputError("a causal LM is fitted from a LevelSpec", got=type(level).__name__)
    if request.loss != "mle":
        raise FitError("this loss is not implemented for causal_lm", got=request.loss, fix="use mle")
    data = _rows(request.data, truth)
    validate = None if request.validate is None else _rows(request.validate, truth)
    if isinstance(validate, TrainingRows):
        raise InputError("held-out rows are scored, so they are Sequences", got="TrainingRows")
    seed = request.stream.integer()
    lm = init_model(level, truth.lm, above.lm, seed)
    law = CausalLaw(lm, truth.prompts, truth.stop_ids, truth.max_new_tokens, None, truth.block_rows)
    epochs = _Epochs(law, validate, level.training, request.tick)
    with _reproducible(seed), load.quiet():
        trainer = _MLETrainer(lm, level.training, _arguments(level.training, len(data), lm, seed), data, epochs)
        trainer.train()
    epochs.restore_best()
    lm.model.eval()
    info: dict[str, object] = {
        "validation": epochs.held_out,
        "best_epoch": epochs.best,
        "steps": int(trainer.state.global_step),
        "tokens": int(data.lengths.sum()) * level.training.num_train_epochs,
        "n_parameters": lm.n_parameters,
    }
    return Fitted(law, info)


class _Answers(Dataset[dict[str, list[int]]]):
    """Prompt and answer of each row, with labels on the answer alone."""

    def __init__(self, x: Sequences | TrainingRows) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        prompt = list(self.x.prompt_ids[int(self.x.prompt_index[i])])
        answer: list[int] = self.x.row(i).tolist()
        return {"input_ids": prompt + answer, "labels": [_IGNORED] * len(prompt) + answer}


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right; what is padding is said by the mask and the labels, never by an id."""
    width = max(len(r["input_ids"]) for r in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([r[key] + [value] * (width - len(r[key])) for r in rows])

    mask_BT = torch.tensor([[True] * len(r["input_ids"]) + [False] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", _IGNORED), "attention_mask": mask_BT}


class _MLETrainer(Trainer):
    """The Trainer with our loss; final: nothing derives from it."""

    def __init__(
        self, lm: CausalLM, training: Training, args: TrainingArguments, data: Sequences | TrainingRows, epochs: _Epochs
    ) -> None:
        super().__init__(
            model=lm.model, args=args, train_dataset=_Answers(data), data_collator=_collate, callbacks=[epochs]
        )
        self.remove_callback(PrinterCallback)
        self.lm, self.bf16 = lm, training.bf16
        # The loss below divides by the answer tokens of the whole step, so accumulated batches weigh by their tokens.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: object,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the answer tokens, nats/token."""
        labels_BT = inputs["labels"][:, 1:]
        wanted_BT = labels_BT != _IGNORED
        n_items = float(wanted_BT.sum() if num_items_in_batch is None else num_items_in_batch)
        lm, dtype = self.lm, torch.bfloat16 if self.bf16 else torch.float32
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=self.bf16):
            # No mask: padding is on the right, where no answer token looks.
            states_MD = lm.body(inputs["input_ids"])[:, :-1][wanted_BT]
        ids_M = labels_BT[wanted_BT]
        if lm.is_split:
            loss = linear_cross_entropy(
                states_MD, lm.head.weight, lm.head.bias, ids_M,
                n_items=n_items, vocab_size=lm.vocab_size, holes=lm.holes, dtype=dtype,
            )  # fmt: skip
        else:
            logits_MV = lm.logits(states_MD)[:, : lm.vocab_size].float()
            loss = F.cross_entropy(logits_MV, ids_M, reduction="sum") / n_items
        if not torch.isfinite(loss):
            raise FitError("the loss is not finite", got=loss.item(), fix="lower the learning rate")
        return loss


class _Epochs(TrainerCallback):
    """After each epoch: held-out likelihood of the law itself; the best epoch's weights are kept in memory."""

    def __init__(self, law: CausalLaw, validate: Sequences | None, training: Training, tick: Tick) -> None:
        self.law, self.validate, self.training, self.tick = law, validate, training, tick
        self.held_out: list[dict[str, float]] = []
        self.best = training.num_train_epochs
        self._best_nats = -math.inf
        self._best_weights: dict[str, Tensor] | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tick(state.global_step, state.max_steps, "steps")

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.validate is None:
            return
        model = self.law.lm.model.eval()
        log_p_N = score(self.law, self.validate, rows_together=self.training.per_device_eval_batch_size)
        model.train()
        nats = float(log_p_N.mean())
        if not math.isfinite(nats):
            raise FitError("the held-out likelihood is not finite", got=nats, fix="lower the learning rate")
        per_token = float(log_p_N.sum() / self.validate.lengths.sum())
        self.held_out.append({"epoch": len(self.held_out) + 1, "nats": nats, "nats_per_token": per_token})
        if nats > self._best_nats:
            self._best_nats, self.best = nats, len(self.held_out)
            self._best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def restore_best(self) -> None:
        """Put the best epoch's weights back."""
        if self._best_weights is not None and self.best != len(self.held_out):
            self.law.lm.model.load_state_dict(self._best_weights)
        self._best_weights = None


def _arguments(t: Training, rows: int, lm: CausalLM, seed: int) -> TrainingArguments:
    batches = math.ceil(rows / t.per_device_train_batch_size)
    steps = math.ceil(batches / t.gradient_accumulation_steps) * t.num_train_epochs
    # Rounded down: the first step of a linear warm-up has rate zero, which a short fit cannot afford.
    warmup = int(t.warmup_ratio * steps)
    decay = min(math.ceil(t.decay_ratio * steps), steps - warmup)
    return TrainingArguments(
        # Made if missing, and never written into: nothing is saved. A folder of its own would stay behind a killed fit.
        output_dir=str(Path(__file__).parent),
        num_train_epochs=t.num_train_epochs,
        per_device_train_batch_size=t.per_device_train_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        max_grad_norm=t.max_grad_norm,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"},
        warmup_steps=warmup,
        bf16=False,  # autocast is entered in the loss, where body and head are called
        seed=seed,
        data_seed=seed,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=lm.device.type != "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@contextlib.contextmanager
def _reproducible(seed: int) -> Generator[None]:
    """Deterministic algorithms and seeded global generators; all of them as before on the way out."""
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
        # Filling every new tensor with NaN finds defects, costs time at every allocation, and changes no result.
        settings.fill_uninitialized_memory = False
        try:
            yield
        except RuntimeError as e:  # torch's: out of memory, an operation without a deterministic form
            raise FitError(f"the fit failed: {e}") from e
        finally:
            settings.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _law(law: object) -> CausalLaw:
    if not isinstance(law, CausalLaw):
        raise InputError("a causal LM is fitted below causal LMs", got=type(law).__name__)
    return law


def _rows(x: Samples, truth: CausalLaw) -> Sequences | TrainingRows:
    if not isinstance(x, Sequences | TrainingRows):
        raise InputError("a causal LM is fitted to Sequences", got=type(x).__name__)
    if x.prompt_ids != truth.prompts.ids:
        raise LawMismatchError("the rows answer other prompts than the truth's", got=len(x.prompt_ids))
    if not len(x) or not x.lengths.all():
        raise FitError("no rows to fit, or rows without a token", got=len(x))
    return x
