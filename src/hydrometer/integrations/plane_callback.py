"""`PlaneCallback`: where a model in training stands on the precision-recall plane, in its trainer's own log."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hydrometer.core.arguments import whole
from hydrometer.core.errors import InputError, LawMismatchError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.collapse import is_collapsing
from hydrometer.models.causal_lm.inference.live import live_network, live_tokenizer, undisturbed
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import vocabulary_hash
from hydrometer.run.judging.judge_settings import JudgeSettings
from hydrometer.run.judging.standing_truth import StandingTruth, stand

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw

__all__ = ["FOLDER", "PREFIX", "PlaneCallback", "round_interval"]

PREFIX = "hydrometer/"
FOLDER = "hydrometer"
"""In the trainer's output_dir: the truth's rows and their scores."""
LOGGED = (
    "precision", "recall", "entropy", "kl_student_truth", "kl_truth_student",
    "precision_reference", "kl_student_reference", "length", "eos_rate",
)  # fmt: skip
TIMED = 10  # steps by which an interval is chosen
MOST_OF_THE_TIME = 0.05

_log = logging.getLogger(__name__)


class PlaneCallback(TrainerCallback):
    """Judges the model in training, every so many steps, and logs its figures as the trainer logs its loss.

    For transformers' `Trainer` and those built on it, TRL's among them. At the start and at every step that `every`
    divides, `n` answers are drawn from the model and scored under it and under the truth, and the truth's answers under
    it. The figures are those of `hydrometer judge` on the same weights, under ``hydrometer/`` with their standard
    errors beside them, ``..._se``. Training is as without it, bit for bit.

    Parameters
    ----------
    truth : a model as `hydrometer judge --truth` takes it; with `reference` a file of texts, as its ``--truth-text``.
    prompts : a file of prompts that are not trained on; None for the begin-of-sequence token, or the texts' own.
    reference : the model that precision is measured under where texts are the truth.
    every : steps between evaluations. None: after 10 steps, the smallest of 1, 2, 5, 10, 20, ... by which all
        evaluations take 5 % of the training's time at most; the one at the start is made in any case.
    n : answers an evaluation; of more prompts, or texts, the first `n`.
    max_new_tokens : L, where an answer is cut. None: 64.
    stop_on_collapse : end the training where a collapse is flagged (``hydrometer/collapse`` is 1).

    Raises
    ------
    InputError : anything wrong with what was given, at the start of the training.

    Examples
    --------
    >>> callback = PlaneCallback("./teacher", prompts="held-out.jsonl", every=50)
    >>> trainer = SFTTrainer(model, args, train_dataset=rows, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        truth: str | Path,
        *,
        prompts: str | Path | None = None,
        reference: str | Path | None = None,
        every: int | None = None,
        n: int = 128,
        max_new_tokens: int | None = None,
        stop_on_collapse: bool = False,
    ) -> None:
        self.truth, self.prompts, self.reference = str(truth), prompts, reference
        self.every = None if every is None else whole(every, "every, the steps between evaluations,", 1)
        self.n = whole(n, "n, the answers an evaluation,", 2)
        self.max_new_tokens, self.stop_on_collapse = max_new_tokens, stop_on_collapse
        self._chosen: int | None = None
        self._student: CausalLaw | None = None
        self._standing: StandingTruth | None = None
        self._handlers: list[CallbackHandler] = []
        self._first, self._began, self._seconds = 0, 0.0, 0.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Open the truth, and judge the model as it is given. The main process alone; others wait in their first step.

        Raises
        ------
        InputError : a model whose weights lie in parts on several devices; processes that would not stop together.
        """
        _refuse_parts(args, together=self.stop_on_collapse)
        if not state.is_world_process_zero:
            return
        self._handlers = _handlers_of(self)
        network = live_network(model)
        with undisturbed(network):
            self._standing = stand(self._settings(network), self.n, Path(str(args.output_dir)) / FOLDER)
            for note in self._standing.question.notes:
                _log.warning("%s", note)
            tokenizer = self._tokenizer(live_tokenizer(processing_class))
            self._student = self._standing.asked(CausalLM(network, tokenizer))
        known = [int(h[PREFIX + "every"]) for h in state.log_history if PREFIX + "every" in h]
        self._chosen = self.every or next(reversed(known), None)
        self._first, self._seconds = state.global_step, 0.0
        if state.global_step == 0:
            self._evaluate(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Judge the model where that is due."""
        if self._student is None:
            return
        if self._chosen is None:
            self._choose(args, state, control)
        elif state.global_step % self._chosen == 0:
            self._evaluate(args, state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let go of the truth."""
        self._student = self._standing = None
        self._handlers = []

    # -- what is asked -------------------------------------------------------------------------------------------------

    def _settings(self, network: Any) -> JudgeSettings:
        """What is judged: in the dtype of the weights, on their device."""
        is_text = self.reference is not None
        return JudgeSettings(
            (),
            truth=None if is_text else self.truth,
            truth_text=self.truth if is_text else None,
            reference=str(self.reference) if is_text else None,
            prompts=None if self.prompts is None else str(self.prompts),
            max_new_tokens=self.max_new_tokens,
            dtype=str(network.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]  (it refuses others)
            device=str(network.device),
        )

    def _tokenizer(self, own: Any) -> Any:
        """The trainer's tokenizer, or the truth's where the trainer has none."""
        assert self._standing is not None
        theirs: Any = self._standing.law
        if own is not None and vocabulary_hash(own) != theirs.lm.vocabulary_hash:
            fix = "judge checkpoints by hydrometer judge, which compares them as texts"
            raise LawMismatchError("the model in training has another vocabulary", got=self.truth, fix=fix)
        return own or theirs.lm.tokenizer

    # -- what is logged ------------------------------------------------------------------------------------------------

    def _evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        assert self._standing is not None
        assert self._student is not None
        began = time.perf_counter()
        with undisturbed(self._student.lm.model):
            found = self._standing.judge(
                self._student, Stream(0).child("evaluate", "in-training", str(state.global_step))
            )
        self._seconds = time.perf_counter() - began
        logged: dict[str, float] = {}
        for name in LOGGED:
            if (e := found.get(name)) is not None and e.value is not None:
                logged[PREFIX + name] = e.value
                logged |= {} if e.se is None else {f"{PREFIX}{name}_se": e.se}
        flags = [h[PREFIX + "collapse"] == 1.0 for h in state.log_history if PREFIX + "collapse" in h]
        flagged = is_collapsing(*_history([*state.log_history, logged], found), flagged=flags[-1:] == [True])
        self._write({**logged, PREFIX + "collapse": float(flagged)}, args, state)
        if flagged and not any(flags):
            _log.warning(
                "step %d: the model collapses: its entropy is less than half of what it was, and it lies further from "
                "the truth than then",
                state.global_step,
            )
        if flagged and self.stop_on_collapse:
            control.should_training_stop = True

    def _write(self, figures: Mapping[str, float], args: TrainingArguments, state: TrainerState) -> None:
        """Add a record to the trainer's history, and tell all that it reports to.

        As `Trainer.log` does, but not by it: TRL's trainers take a call of theirs for the end of an interval over which
        they average figures of their own.
        """
        logs = {**figures, "epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        for handler in self._handlers:
            handler.call_event("on_log", args, state, TrainerControl(), logs=logs)

    def _choose(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Choose an interval once enough steps were timed; the first of them, which warms up, is not."""
        steps = state.global_step - self._first - 1
        if steps == 0:
            self._began = time.perf_counter()
        if steps < TIMED:
            return
        a_step = (time.perf_counter() - self._began) / steps
        if not self._seconds:
            self._evaluate(args, state, control)
        self._chosen = round_interval(self._seconds, a_step, state.max_steps)
        self._write({PREFIX + "every": self._chosen}, args, state)
        if self._chosen > state.max_steps:
            _log.warning(
                "an evaluation takes %.1f s and a step %.2f s: more of them would take over %.0f %% of the time; lower "
                "n or max_new_tokens, or set every",
                self._seconds, a_step, 100 * MOST_OF_THE_TIME,
            )  # fmt: skip


def round_interval(evaluation: float, step: float, steps: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, ... steps at which evaluations take 5 % of the time at most.

    Parameters
    ----------
    evaluation, step : seconds that one takes.
    steps : of the whole training; an evaluation is made before the first, too. Where more than that one would take too
        long, the interval is longer than the training.

    Examples
    --------
    >>> round_interval(2.0, 0.5, 10_000), round_interval(2.0, 0.5, 100)
    (100, 200)
    """
    rounds = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return next(r for r in rounds if r > steps or evaluation * (1 + steps // r) <= MOST_OF_THE_TIME * step * steps)


def _handlers_of(callback: TrainerCallback) -> list[CallbackHandler]:
    """Return what calls a callback, and with it all that its trainer reports to: a callback is told neither."""
    return [
        h for h in gc.get_objects() if issubclass(type(h), CallbackHandler) and any(c is callback for c in h.callbacks)
    ]


def _refuse_parts(args: TrainingArguments, *, together: bool) -> None:
    if args.fsdp or args.deepspeed:
        what = "the weights of a model in training have to be whole on the main process"
        fix = "train without FSDP and DeepSpeed, or judge checkpoints by hydrometer judge"
        raise InputError(what, got="fsdp" if args.fsdp else "deepspeed", fix=fix)
    if together and args.world_size > 1:
        what = "stop_on_collapse stops one process, and the others would wait for it"
        raise InputError(what, got=f"{args.world_size} processes", fix="leave it out; the flag is logged all the same")


def _history(
    records: Sequence[Mapping[str, Any]], found: Mapping[str, Estimate]
) -> tuple[list[Estimate], list[Estimate]]:
    """Entropy and divergence at every evaluation so far.

    Where texts are the truth its entropy is unknown but constant, so that less recall is more divergence.
    """
    name, sign = ("kl_truth_student", 1.0) if "kl_truth_student" in found else ("recall", -1.0)
    rows = [r for r in records if PREFIX + "entropy" in r and PREFIX + name in r]

    def of(k: str, sign: float) -> list[Estimate]:
        e = found[k]
        ses = [r.get(f"{PREFIX}{k}_se") for r in rows]
        return [
            Estimate(sign * r[PREFIX + k], se, se, e.n, 0, e.method, e.unit, e.df)
            for r, se in zip(rows, ses, strict=True)
        ]

    return of("entropy", 1.0), of(name, sign)
