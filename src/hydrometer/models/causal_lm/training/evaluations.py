"""Held-out likelihood in the midst of a fit, and the weights of the best evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydrometer.core.errors import FitError
from hydrometer.core.watching import log
from hydrometer.models.base import Tick
from hydrometer.models.causal_lm.cpu.freed_memory import bound_freed_memory
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.causal_lm.training.answer_loss import OwnRows
from hydrometer.models.causal_lm.training.distributed import Distributed
from hydrometer.models.causal_lm.training.optimised import Optimised
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.rows.sequences import Sequences

__all__ = ["Evaluations"]


class Evaluations(TrainerCallback):
    """Scores the held-out rows under the law itself, and keeps the best evaluation's weights in memory.

    Parameters
    ----------
    law : of the network that is fitted. own : brings that network up to date. rows : how many are learnt.
    group : the processes of the fit; rank 0 evaluates.
    objective : its value on rows, nats a token, where it is not likelihood: the best evaluation has the lowest, unless
        there is a `figure`.

    Attributes
    ----------
    held_out : one record an evaluation: epoch or step, nats (the mean of a row's log-probability), nats per token, and
        the objective and the figure where they are not likelihood.
    tokens : how many end the fit; None where its steps do.
    drawn : draws the student's own rows, where it learns from such.
    figure : name of what chooses the evaluation in the objective's place, and its value on rows; None of `mle`.
    best : which evaluation, from 1. step : the last one made. notes : what is to be said of the fit.
    """

    def __init__(
        self,
        law: CausalLaw,
        own: Optimised,
        validate: Sequences | None,
        training: Training,
        rows: int,
        tick: Tick,
        group: Distributed | None,
        objective: Callable[[Sequences], float] | None = None,
    ) -> None:
        self.law, self.own, self.validate, self.training = law, own, validate, training
        self.tick, self.group, self.objective = tick, group, objective
        self.notes: dict[str, object] = {}
        self.held_out: list[dict[str, float]] = []
        epoch, self.steps = training.steps(rows)
        self.tokens: int | None = None
        self.drawn: OwnRows | None = None
        self.figure: tuple[str, Callable[[Sequences], float] | None] | None = None
        self.every = training.eval_steps or epoch
        self.step = 0
        self._loss: Tensor | float = 0.0
        self._rate = 0.0
        self.best = self._evaluations(self.steps)
        self._best_value = -math.inf
        self._best_weights: dict[str, Tensor] | None = None

    def until(self, tokens: int) -> None:
        """End the fit with the step that has learned from so many tokens."""
        self.tokens = self.steps = tokens  # steps of a token at least, until the last one is known

    def _evaluations(self, step: int) -> int:
        """Evaluations up to a step: at every interval, and at the last step."""
        return step // self.every + (step == self.steps and step % self.every > 0)

    @property
    def is_over(self) -> bool:
        """Whether so many evaluations in a row were no better than the best as end the fit."""
        patience = self.training.early_stopping_patience
        return patience is not None and bool(self.held_out) and len(self.held_out) - self.best >= patience

    @property
    def info(self) -> dict[str, object]:
        """The history, and which evaluation is kept."""
        if self.training.eval_steps is None:
            return {"validation": self.held_out, "best_epoch": self.best}
        best = min(self.best * self.every, self.steps)
        return {"validation": self.held_out, "best_step": best}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the evaluation that a checkpoint lacks: older ones were written before that of their step."""
        self.step = state.global_step
        if self._evaluations(state.global_step) > len(self.held_out):
            self._evaluate(state.global_step, control)

    def heard(self, loss: Tensor) -> None:
        """Add the loss of a part of the step's rows."""
        self._loss = self._loss + loss

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, optimizer: Any, **_: Any
    ) -> None:
        """Note the learning rate of the step."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate where that is due, before the step's checkpoint is written."""
        self.step = state.global_step
        bound_freed_memory()
        loss = self._loss if self.group is None else self.group.mean(self._loss)
        log(self.step, {"train/loss": float(loss), "train/learning_rate": float(self._rate)})
        self._loss = 0.0
        if self.tokens is not None and state.num_input_tokens_seen >= self.tokens:
            self.steps, control.should_training_stop = state.global_step, True
        done = (state.global_step, state.max_steps, "steps")
        self.tick(*(done if self.tokens is None else (int(state.num_input_tokens_seen), self.tokens, "tokens")))
        if state.global_step % self.every == 0 or state.global_step == self.steps:
            self._evaluate(state.global_step, control)

    def finish(self, step: int) -> None:
        """Bring the law up to date with the checkpoint of the last step. Called by all processes."""
        self.step = step
        if self._evaluations(step) > len(self.held_out):
            self._evaluate(step, TrainerControl())
        else:
            self.own.gather()

    def _evaluate(self, step: int, control: TrainerControl) -> None:
        """Score the held-out rows. Called by all processes."""
        if self.group is not None:
            self.group.gather()
        self.own.gather()
        if self.validate is None:
            return
        if self.group is None or self.group.rank == 0:
            self._score(step, self.validate)
        over = self.is_over
        if self.group is not None and self.training.early_stopping_patience is not None:
            over = bool(self.group.broadcast(over))
        if over:
            control.should_training_stop = True

    def _score(self, step: int, validate: Sequences) -> None:
        model = self.law.lm.model.eval()
        # However rows end: a text that was cut in another tokenizer's tokens is a beginning, no outcome of this law.
        steps = score_steps(self.law, validate, rows_together=self.training.per_device_eval_batch_size)
        log_p_N = steps.selected.sum(-1)
        value = None if self.objective is None else self.objective(validate)
        nats = float(log_p_N.mean())
        more = {} if value is None else {"objective": value}
        goodness = nats if value is None else -value
        if self.figure is not None:
            name, figure = self.figure
            goodness = nats if figure is None else -figure(validate)
            more |= {} if figure is None else {name: -goodness}
        model.train()
        if not math.isfinite(goodness) or math.isnan(nats):
            raise FitError("the held-out objective is not finite", got=goodness, fix="lower the learning rate")
        per_token = float(log_p_N.sum() / validate.lengths.sum())
        by_step = self.training.eval_steps is not None
        at = {"step": step} if by_step else {"epoch": len(self.held_out) + 1}
        log(step, {"eval/loss": -per_token} | ({} if value is None else {"eval/objective": value}))
        self.held_out.append({**at, "nats": nats, "nats_per_token": per_token, **more})
        if goodness > self._best_value:
            self._best_value, self.best = goodness, len(self.held_out)
            self._best_weights = self.own.state()

    def remembered(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Return the history and the best evaluation's weights."""
        nats = None if self._best_weights is None else self._best_value
        told = {"held_out": self.held_out, "best": self.best, "best_nats": nats, "steps": self.steps}
        told |= {} if self.drawn is None else {"tokens_drawn": self.drawn.tokens}
        return told, self._best_weights

    def remember(self, history: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Restore the state of an earlier process."""
        self.held_out, self.best = list(history["held_out"]), int(history["best"])
        self.steps = int(history.get("steps", self.steps))
        if self.drawn is not None:
            self.drawn.tokens = int(history.get("tokens_drawn", 0))
        self.step = min(len(self.held_out) * self.every, self.steps)
        if weights is not None:
            device = self.law.lm.device
            self._best_value = float(history["best_nats"])
            self._best_weights = {k: v.to(device) for k, v in weights.items()}

    def restore_best(self) -> None:
        """Restore the best evaluation's weights."""
        if self._best_weights is not None and self.best != len(self.held_out):
            self.own.restore(self._best_weights)
        self._best_weights = None
