"""Fits a level by maximum likelihood, in the loop of transformers' Trainer, with our loss and choice of epoch.

Shapes: B rows, T positions, M answer tokens of a batch, D width, V ids.

    loss = - (1 / M) sum over answer tokens, the stop token among them, of log q(x_t | prompt, x_<t)        nats/token

The head runs on answer positions only, and logits are computed in chunks (`losses`). Padding is known by length: an
end-of-sequence token that also pads is learned like any other. If the network allows it, a batch is run without
padding, and each of its prompts once (`packed_rows`).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hydrometer.core.errors import FitError, InputError, LawMismatchError
from hydrometer.core.io.locking import claim
from hydrometer.models.base import FitRequest, Fitted, Samples, Tick
from hydrometer.models.causal_lm.cpu.freed_memory import bound_freed_memory
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.inference.law import CausalLaw, learns_from_whole_rows
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.loading.model_files import quiet
from hydrometer.models.causal_lm.spec import Training, level_spec
from hydrometer.models.causal_lm.training.checkpoints import Checkpoints
from hydrometer.models.causal_lm.training.determinism import reproducible
from hydrometer.models.causal_lm.training.distributed import Distributed, Loss, join_group
from hydrometer.models.causal_lm.training.initialization import init_model
from hydrometer.models.causal_lm.training.losses import linear_cross_entropy
from hydrometer.models.causal_lm.training.packed_rows import IGNORED, pack, packed_states, takes_packed_rows
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["fit"]

_WEIGHTS = "model.safetensors"
_LEASE = 100.0  # seconds: NFS 4 holds the lock of a lost machine for 90


def fit(request: FitRequest) -> Fitted[CausalLaw]:
    """Fit a new model by maximum likelihood, deterministically for equal torch, processor class and threads.

    Raises
    ------
    FitError : another loss than mle, no rows, or a loss that is not finite.
    LawMismatchError : rows of other prompts than the truth's; a text brings its own.
    """
    truth, level = _law(request.truth), level_spec(request.level)
    above = truth if request.teacher is None else _law(request.teacher)
    if request.loss != "mle":
        raise FitError("this loss is not implemented for causal_lm", got=request.loss, fix="use mle")
    asked = replace(truth, prompts=_own_prompts(request.data)) if request.prefix_source == "text" else truth
    data = _rows(request.data, asked)
    validate = None if request.validate is None else _rows(request.validate, asked)
    if isinstance(validate, TrainingRows):
        raise InputError("held-out rows are scored, so they are Sequences", got="TrainingRows")
    seed = request.stream.integer()
    lm = init_model(level, truth.lm, above.lm, seed)
    law = CausalLaw(lm, truth.prompts, truth.stop_ids, truth.max_new_tokens, None, truth.block_rows)
    _refuse_what_looks_ahead(law)
    training = level.training
    with contextlib.ExitStack() as held:
        held.enter_context(reproducible(seed))
        held.enter_context(quiet())
        loss = _loss_of(law, training)
        group = join_group(lm, training, loss)
        epochs = _Epochs(replace(law, prompts=asked.prompts), validate, training, request.tick, group)
        kept = _checkpoints(training, request.partial, epochs, group, held)
        arguments = _arguments(training, len(data), lm, seed, None if kept is None else kept.folder)
        trainer = _MLETrainer(lm, loss, arguments, data, epochs, group)
        trainer.train(resume_from_checkpoint=_goes_on_from(trainer, kept, epochs, group))
    epochs.restore_best()
    lm.model.eval()
    info: dict[str, object] = {
        **epochs.notes,
        "validation": epochs.held_out,
        "best_epoch": epochs.best,
        "steps": int(trainer.state.global_step),
        "tokens": int(data.lengths.sum()) * level.training.num_train_epochs,
        "n_parameters": lm.n_parameters,
    }
    return Fitted(law, info)


def _refuse_what_looks_ahead(law: CausalLaw) -> None:
    """Refuse a network whose batched whole rows differ from their prefixes alone."""
    if not learns_from_whole_rows(law):
        raise FitError(
            "what the network says at a position depends on later ones or on other rows, so it cannot be learnt",
            got=type(law.lm.model).__name__,
            fix="start from another architecture"
            + ("" if (limit := law.lm.running.limit) is None else f", or keep prompt and answer within {limit} tokens"),
        )


class _Answers(Dataset[dict[str, list[int]]]):
    """Prompt and answer of each row, with labels on the answer alone."""

    def __init__(self, x: Sequences | TrainingRows) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        if i < 0:  # an uncounted row; see `distributed`
            row = self[-1 - i]
            return {**row, "labels": [IGNORED] * len(row["labels"])}
        prompt = list(self.x.prompt_ids[int(self.x.prompt_index[i])])
        answer: list[int] = self.x.row(i).tolist()
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right; mask and labels mark padding, never an id."""
    width = max(len(r["input_ids"]) for r in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([r[key] + [value] * (width - len(r[key])) for r in rows])

    mask_BT = torch.tensor([[True] * len(r["input_ids"]) + [False] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED), "attention_mask": mask_BT}


def _loss_of(law: CausalLaw, training: Training) -> Loss:
    """The loss of a batch of rows. Packs are used on the CPU only, where they were measured."""
    lm = law.lm
    packs = lm.device.type == "cpu" and takes_packed_rows(lm.network)
    return partial(_answer_loss, dtype=torch.bfloat16 if training.bf16 else torch.float32, packs=packs)


def _answer_loss(
    lm: CausalLM,
    ids_BT: Tensor,
    labels_BT: Tensor,
    n_items: float,
    *,
    dtype: torch.dtype = torch.float32,
    packs: bool = False,
) -> Tensor:
    """Negative log-likelihood of the answer tokens, divided by `n_items`; nats. `packs`: rows may share prompts."""
    rows = pack(ids_BT, labels_BT) if packs else None
    wanted_BT = labels_BT[:, 1:] != IGNORED
    ids_M = labels_BT[:, 1:][wanted_BT]
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        # Padded rows need no mask: padding is on the right, and no answer token attends to it.
        states_MD = lm.network.body(ids_BT)[:, :-1][wanted_BT] if rows is None else packed_states(lm.network, rows)
    if not len(ids_M):  # nothing to learn, but every parameter needs a gradient, here zero
        last = lm.network.head(states_MD.float()) if lm.is_split else states_MD
        return last.float().sum() * 0.0
    if lm.is_split:
        head = lm.network.head
        return linear_cross_entropy(
            states_MD,
            head.weight,
            head.bias,
            ids_M,
            n_items=n_items,
            vocab_size=lm.vocab_size,
            holes=lm.holes,
            dtype=dtype,
        )
    logits_MV = lm.network.logits(states_MD)[:, : lm.vocab_size].float()
    return F.cross_entropy(logits_MV, ids_M, reduction="sum") / n_items


class _MLETrainer(Trainer):
    """The Trainer with our loss. Final."""

    def __init__(
        self,
        lm: CausalLM,
        loss: Loss,
        args: TrainingArguments,
        data: Sequences | TrainingRows,
        epochs: _Epochs,
        group: Distributed | None,
    ) -> None:
        model = lm.model if group is None else group.trained.model
        super().__init__(
            model=model, args=args, train_dataset=_Answers(data), data_collator=_collate, callbacks=[epochs]
        )
        self.remove_callback(PrinterCallback)
        self.lm, self.loss, self.group = lm, loss, group
        # The loss divides by the answer tokens of the whole step, so accumulated batches weigh by their tokens.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: object,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the answer tokens, nats/token."""
        n = num_items_in_batch
        n_items = float((inputs["labels"][:, 1:] != IGNORED).sum() if n is None else n)
        if self.group is None:
            loss = self.loss(self.lm, inputs["input_ids"], inputs["labels"], n_items)
        else:
            module: Any = model
            loss = module(inputs["input_ids"], inputs["labels"], n_items)
        if not torch.isfinite(loss):
            raise FitError("the loss is not finite", got=loss.item(), fix="lower the learning rate")
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every row of a batch, or this process's."""
        if self.group is None:
            return super().get_train_dataloader()
        data: Any = self.train_dataset
        return self.group.loader(data, _collate, self.args.per_device_train_batch_size, int(self.args.seed))

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """With several processes, use the module that exchanges gradients."""
        if self.group is None or not training:
            return super()._wrap_model(model, training, dataloader)
        return self.group.module

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a checkpoint's weights only; the Trainer would also pickle its arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.lm.model, str(folder / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.lm.model, Path(resume_from_checkpoint) / _WEIGHTS)


class _Epochs(TrainerCallback):
    """After each epoch: held-out likelihood of the law itself; the best epoch's weights are kept in memory."""

    def __init__(
        self, law: CausalLaw, validate: Sequences | None, training: Training, tick: Tick, group: Distributed | None
    ) -> None:
        self.law, self.validate, self.training, self.tick, self.group = law, validate, training, tick, group
        self.notes: dict[str, object] = {}
        self.held_out: list[dict[str, float]] = []
        self.best = training.num_train_epochs
        self._best_nats = -math.inf
        self._best_weights: dict[str, Tensor] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A checkpoint at an epoch's last step was written before that epoch was scored.
        if state.global_step * self.training.num_train_epochs // state.max_steps > len(self.held_out):
            self.on_epoch_end(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        bound_freed_memory()
        self.tick(state.global_step, state.max_steps, "steps")

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.validate is None:
            if self.group is not None:
                self.group.gather()
            return
        if self.group is not None:
            self.group.gather()
            if self.group.rank:
                return
        model = self.law.lm.model.eval()
        # However rows end: a text that was cut in another tokenizer's tokens is a beginning, no outcome of this law.
        steps = score_steps(self.law, self.validate, rows_together=self.training.per_device_eval_batch_size)
        log_p_N = steps.selected.sum(-1)
        model.train()
        nats = float(log_p_N.mean())
        if not math.isfinite(nats):
            raise FitError("the held-out likelihood is not finite", got=nats, fix="lower the learning rate")
        per_token = float(log_p_N.sum() / self.validate.lengths.sum())
        self.held_out.append({"epoch": len(self.held_out) + 1, "nats": nats, "nats_per_token": per_token})
        if nats > self._best_nats:
            self._best_nats, self.best = nats, len(self.held_out)
            self._best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def remembered(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Return the history and the best epoch's weights."""
        nats = None if self._best_weights is None else self._best_nats
        return {"held_out": self.held_out, "best": self.best, "best_nats": nats}, self._best_weights

    def remember(self, history: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Restore the state of an earlier process."""
        self.held_out, self.best = list(history["held_out"]), int(history["best"])
        if weights is not None:
            device = self.law.lm.device
            self._best_nats = float(history["best_nats"])
            self._best_weights = {k: v.to(device) for k, v in weights.items()}

    def restore_best(self) -> None:
        """Restore the best epoch's weights."""
        if self._best_weights is not None and self.best != len(self.held_out):
            self.law.lm.model.load_state_dict(self._best_weights)
        self._best_weights = None


def _checkpoints(
    training: Training, folder: Path | None, epochs: _Epochs, group: Distributed | None, held: contextlib.ExitStack
) -> Checkpoints | None:
    """Return the fit's checkpoints; None if disabled, or while another run makes the same fit."""
    if training.save_steps is None or folder is None:
        return None
    mine = False
    if group is None or group.rank == 0:
        mine = held.enter_context(claim(folder, 0))
        if not mine:
            epochs.tick(0, 1, "waiting for another run that makes the same fit")
            mine = held.enter_context(claim(folder, _LEASE))
    if not (mine if group is None else group.broadcast(mine)):
        epochs.notes["checkpoints"] = "none: another run is making the same fit"
        epochs.tick(0, 1, "no checkpoints: another run is making the same fit")
        return None
    barrier = None if group is None else group.barrier
    return Checkpoints(folder, epochs, barrier, writes=group is None or group.rank == 0)


def _goes_on_from(trainer: Trainer, kept: Checkpoints | None, epochs: _Epochs, group: Distributed | None) -> str | None:
    """Restore the newest checkpoint and return its path, or None."""
    if kept is None:
        return None
    trainer.add_callback(kept)
    path = kept.newest() if kept.writes else None
    path = path if group is None else group.broadcast(path)
    if kept.discarded:
        epochs.notes["discarded"] = kept.discarded
        epochs.tick(0, 1, kept.discarded[0])
    if path is None:
        return None
    kept.open(path)
    epochs.notes["resumed"] = path.name
    return str(path)


def _arguments(t: Training, rows: int, lm: CausalLM, seed: int, folder: str | Path | None) -> TrainingArguments:
    """The Trainer's own settings; `folder` is that of checkpoints, None where none are kept."""
    batches = math.ceil(rows / t.per_device_train_batch_size)
    steps = math.ceil(batches / t.gradient_accumulation_steps) * t.num_train_epochs
    # Rounded down: the first step of a linear warm-up has rate zero, which a short fit cannot afford.
    warmup = int(t.warmup_ratio * steps)
    decay = min(math.ceil(t.decay_ratio * steps), steps - warmup)
    arguments = TrainingArguments(
        # Made if missing, and not written into where nothing is kept; one of its own would stay behind a killed fit.
        output_dir=str(folder or Path(__file__).parent),
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


def _law(law: object) -> CausalLaw | ServedLaw:
    if not isinstance(law, CausalLaw | ServedLaw):
        raise InputError("a causal LM is fitted below causal LMs", got=type(law).__name__)
    return law


def _own_prompts(x: Samples) -> Prompts:
    if not isinstance(x, Sequences | TrainingRows):
        raise InputError("a causal LM is fitted to Sequences", got=type(x).__name__)
    return Prompts(x.prompt_ids, ("",) * len(x.prompt_ids))


def _rows(x: Samples, truth: CausalLaw | ServedLaw) -> Sequences | TrainingRows:
    if not isinstance(x, Sequences | TrainingRows):
        raise InputError("a causal LM is fitted to Sequences", got=type(x).__name__)
    if x.prompt_ids != truth.prompts.ids:
        raise LawMismatchError("the rows answer other prompts than the truth's", got=len(x.prompt_ids))
    if not x.lengths.any():  # an answer that was cut before its first character has none, and teaches nothing
        raise FitError("no rows to fit, or none with a token", got=len(x))
    return x
