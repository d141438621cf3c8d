"""Fits a level by maximum likelihood, in the loop of transformers' Trainer, with our loss and choice of weights.

Shapes: B rows, T positions, M answer tokens of a batch, D width, V ids.

    loss = - (1 / M) sum over answer tokens, the stop token among them, of log q(x_t | prompt, x_<t)        nats/token

The head runs on answer positions only, and logits are computed in chunks (`losses`). Padding is known by length: an
end-of-sequence token that also pads is learned like any other. If the network allows it, a batch is run without
padding, and each of its prompts once (`packed_rows`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState

from hydrometer.core.distillation import Objective, Prefixes
from hydrometer.core.errors import FitError, InputError, LawMismatchError
from hydrometer.core.io.locking import claim
from hydrometer.models.base import FitRequest, Fitted, Samples
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.inference.law import CausalLaw, learns_from_whole_rows
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.level_spec import level_spec
from hydrometer.models.causal_lm.loading.model_files import quiet
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.answer_loss import (
    Answers,
    Matched,
    OwnRows,
    collate,
    held_out_value,
    loss_of,
    matched_by,
    own_rows_of,
)
from hydrometer.models.causal_lm.training.checkpoints import Checkpoints
from hydrometer.models.causal_lm.training.distributed import Distributed, Loss, join_group
from hydrometer.models.causal_lm.training.evaluations import Evaluations
from hydrometer.models.causal_lm.training.initialization import init_model
from hydrometer.models.causal_lm.training.keeping import left_out
from hydrometer.models.causal_lm.training.memory.step_memory import refuse_where_too_large
from hydrometer.models.causal_lm.training.optimised import Optimised, optimised
from hydrometer.models.causal_lm.training.packed_rows import IGNORED
from hydrometer.models.causal_lm.training.teacher_laws import LawsAlongRows
from hydrometer.models.causal_lm.training.trainer_settings import reproducible, trainer_arguments
from hydrometer.models.objectives import Divergence, divergence_of
from hydrometer.models.rows.kept_laws import bytes_a_token
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["fit"]

_WEIGHTS = "model.safetensors"
_LEASE = 100.0  # seconds: NFS 4 holds the lock of a lost machine for 90


def fit(request: FitRequest) -> Fitted[CausalLaw]:
    """Fit a new model by maximum likelihood, deterministically for equal torch, processor class and threads.

    Raises
    ------
    SpecError : an objective that there is not, or an infinite one.
    FitError : an objective without the teacher that it needs, no rows, or a loss that is not finite.
    LawMismatchError : rows of other prompts than the truth's; a text brings its own.
    """
    truth, level = _law(request.truth), level_spec(request.level)
    above = truth if request.teacher is None else _law(request.teacher)
    asked = replace(truth, prompts=_own_prompts(request.data)) if request.prefix_source == "text" else truth
    data = _rows(request.data, asked)
    validate = None if request.validate is None else _rows(request.validate, asked)
    if isinstance(validate, TrainingRows):
        raise InputError("held-out rows are scored, so they are Sequences", got="TrainingRows")
    seed = request.stream.integer()
    warm = None if request.start is None else _law(request.start).lm
    lm = init_model(level, truth.lm, above.lm, seed, warm)
    law = CausalLaw(lm, truth.prompts, truth.stop_ids, truth.max_new_tokens, None, truth.block_rows)
    _refuse_what_looks_ahead(law)
    training = level.training
    if lm.device.type == "cuda":
        free = torch.cuda.mem_get_info(lm.device)[0]
        free += torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
        own = Prefixes.from_json(request.prefix_source).own > 0
        refuse_where_too_large(lm, data, training, free, draws_own=own)
    with contextlib.ExitStack() as held:
        held.enter_context(reproducible(seed))
        held.enter_context(quiet())
        matched = matched_by(request, training, data, validate, lm.vocab_size)
        seen = _left_out(law, matched, data, training)
        loss = loss_of(law, training, matched)
        own = held.enter_context(optimised(lm, level, seed))
        drawn = own_rows_of(request, replace(law, prompts=asked.prompts), own.gather, training, data.prompt_index)
        group = join_group(lm, training, loss)
        evaluations = Evaluations(
            replace(law, prompts=asked.prompts),
            own,
            validate,
            training,
            len(data),
            request.tick,
            group,
            None if matched is None else held_out_value(law, training, matched, drawn),
        )
        evaluations.drawn = drawn
        if request.tokens is not None:
            evaluations.until(request.tokens)
        if matched is not None and training.metric_for_best_model is not None:
            evaluations.figure = _figure(training.metric_for_best_model, law, training, matched)
        kept = _checkpoints(training, request.partial, evaluations, group, held)
        folder = None if kept is None else kept.folder
        arguments = trainer_arguments(training, len(data), lm, seed, folder, request.tokens)
        trainer = _MLETrainer(own, loss, arguments, data, evaluations, group)
        trainer.drawn, trainer.planned = drawn, training.steps(len(data))[1]
        start = _goes_on_from(trainer, kept, evaluations, group)
        if start is not None:
            trainer.state = TrainerState.load_from_json(str(Path(start) / "trainer_state.json"))
        if start is not None and (at := int(start.rpartition("-")[2])) >= evaluations.steps:
            trainer.load(start)  # killed after the last step, before the law was stored
            evaluations.finish(at)
        elif not evaluations.is_over:  # a checkpoint of the last step before an early stop
            trainer.train(resume_from_checkpoint=start)
    evaluations.restore_best()
    lm.model.eval()
    info: dict[str, object] = {
        **evaluations.notes,
        **evaluations.info,
        "chosen_by": request.loss if evaluations.figure is None else evaluations.figure[0],
        **seen,
        "steps": evaluations.step,
        "tokens": int(data.lengths.sum()) * evaluations.step // training.steps(len(data))[0]
        if drawn is None and request.tokens is None
        else trainer.state.num_input_tokens_seen,
        **({} if drawn is None else {"tokens_drawn": drawn.tokens}),
        "n_parameters": lm.n_parameters,
    }
    return Fitted(law, info)


def _figure(
    named: str, law: CausalLaw, training: Training, matched: Matched
) -> tuple[str, Callable[[Sequences], float] | None]:
    """Return a figure's name, and its value on held-out rows; None of likelihood, which is always scored."""
    measure = divergence_of(Objective.from_json(named))
    return named, None if measure is None else held_out_value(law, training, matched, measure=measure)


def _left_out(
    law: CausalLaw, matched: Matched | None, data: Sequences | TrainingRows, training: Training
) -> dict[str, object]:
    """Return what is to be said of a teacher's law that was kept along the rows: its size, and what it leaves out."""
    if matched is None or not isinstance(matched.laws, LawsAlongRows) or not isinstance(matched.divergence, Divergence):
        return {}
    d = replace(matched.divergence, mle=0.0)
    found = left_out(law, matched.laws, data, d, training.per_device_train_batch_size)
    size = bytes_a_token(matched.laws.law, law.lm.vocab_size)
    return {"teacher_law": {"bytes_a_token": size, **found}}


def _refuse_what_looks_ahead(law: CausalLaw) -> None:
    """Refuse a network whose batched whole rows differ from their prefixes alone."""
    if not learns_from_whole_rows(law):
        raise FitError(
            "what the network says at a position depends on later ones or on other rows, so it cannot be learnt",
            got=type(law.lm.model).__name__,
            fix="start from another architecture"
            + ("" if (limit := law.lm.running.limit) is None else f", or keep prompt and answer within {limit} tokens"),
        )


class _MLETrainer(Trainer):
    """The Trainer with our loss. Final."""

    def __init__(
        self,
        own: Optimised,
        loss: Loss,
        args: TrainingArguments,
        data: Sequences | TrainingRows,
        evaluations: Evaluations,
        group: Distributed | None,
    ) -> None:
        model = own.trained.model if group is None else group.trained.model
        super().__init__(
            model=model, args=args, train_dataset=Answers(data), data_collator=collate, callbacks=[evaluations]
        )
        self.remove_callback(PrinterCallback)
        self.own, self.lm, self.loss, self.group, self.evaluations = own, own.trained, loss, group, evaluations
        self.drawn: OwnRows | None = None
        self.planned = 0
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
        self.evaluations.heard(loss.detach())
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Batches of a step: the data's, or the student's own rows in their place."""
        given, n = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.drawn is None and self.evaluations.tokens is None:
            return given, n
        step = self.state.global_step
        if self.drawn is not None and given and self.drawn.takes(step):
            given = [own for _, own in zip(given, self.drawn.step(step), strict=False)]
            n = sum(int((batch["labels"] != IGNORED).sum()) for batch in given)
        self.state.num_input_tokens_seen += int(n or 0)  # kept with checkpoints
        return given, n

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer of the weights that it steps, which need not be those of the network in the loop."""
        if self.own.stepped is self.own.trained:
            return super().create_optimizer(*(() if model is None else (model,)))
        network: Any = self.model
        self.model: Any = self.own.stepped.model
        try:
            made = super().create_optimizer()
        finally:
            self.model = network
        self.own.attach(made, self.args.max_grad_norm)
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Follow the schedule by steps, or by the share of the tokens that are learned."""
        tokens, planned = self.evaluations.tokens, self.planned
        made: Any = super().create_scheduler(num_training_steps if tokens is None else planned, optimizer)
        if tokens is not None:

            def by_tokens(rate: Callable[[int], float]) -> Callable[[int], float]:
                return lambda _: rate(min(round(planned * self.state.num_input_tokens_seen / tokens), planned))

            made.lr_lambdas = [by_tokens(rate) for rate in made.lr_lambdas]
        return made

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every row of a batch, or this process's."""
        if self.group is None:
            return super().get_train_dataloader()
        data: Any = self.train_dataset
        return self.group.loader(data, collate, self.args.per_device_train_batch_size, int(self.args.seed))

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """With several processes, use the module that exchanges gradients."""
        if self.group is None or not training:
            return super()._wrap_model(model, training, dataloader)
        return self.group.module

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a checkpoint's weights only; the Trainer would also pickle its arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.own.stepped.model, str(folder / _WEIGHTS))

    def load(self, checkpoint: str) -> None:
        """Set the network to a checkpoint's weights."""
        self._load_from_checkpoint(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.own.stepped.model, Path(resume_from_checkpoint) / _WEIGHTS)
        self.own.follow()


def _checkpoints(
    training: Training,
    folder: Path | None,
    evaluations: Evaluations,
    group: Distributed | None,
    held: contextlib.ExitStack,
) -> Checkpoints | None:
    """Return the fit's checkpoints; None if disabled, or while another run makes the same fit."""
    if training.save_steps is None or folder is None:
        return None
    mine = False
    if group is None or group.rank == 0:
        mine = held.enter_context(claim(folder, 0))
        if not mine:
            evaluations.tick(0, 1, "waiting for another run that makes the same fit")
            mine = held.enter_context(claim(folder, _LEASE))
    if not (mine if group is None else group.broadcast(mine)):
        evaluations.notes["checkpoints"] = "none: another run is making the same fit"
        evaluations.tick(0, 1, "no checkpoints: another run is making the same fit")
        return None
    barrier = None if group is None else group.barrier
    return Checkpoints(folder, evaluations, barrier, writes=group is None or group.rank == 0)


def _goes_on_from(
    trainer: Trainer, kept: Checkpoints | None, evaluations: Evaluations, group: Distributed | None
) -> str | None:
    """Restore the newest checkpoint and return its path, or None."""
    if kept is None:
        return None
    trainer.add_callback(kept)
    path = kept.newest() if kept.writes else None
    path = path if group is None else group.broadcast(path)
    if kept.discarded:
        evaluations.notes["discarded"] = kept.discarded
        evaluations.tick(0, 1, kept.discarded[0])
    if path is None:
        return None
    kept.open(path)
    evaluations.notes["resumed"] = path.name
    return str(path)


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
