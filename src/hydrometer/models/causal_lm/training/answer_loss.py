"""The loss of a batch of rows: rows as the Trainer takes them, given or its own, and the objective on answer tokens.

Shapes: B rows, T positions, M answer tokens of a batch, D width, V ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hydrometer.core.arguments import of_type
from hydrometer.core.distillation import DENSE, Objective, Prefixes, learns_from
from hydrometer.core.errors import FitError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.networks import next_token
from hydrometer.models.causal_lm.training.distributed import Loss
from hydrometer.models.causal_lm.training.losses import (
    TeacherRows,
    linear_cross_entropy,
    linear_divergence,
    linear_policy_gradient,
)
from hydrometer.models.causal_lm.training.packed_rows import IGNORED, pack, packed_states, takes_packed_rows
from hydrometer.models.causal_lm.training.teacher_laws import LawsAlongRows, TeacherLaws
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.objectives import Divergence, PolicyGradient, divergence_of, refuse_infinite, refuse_unkept
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = [
    "Answers",
    "Matched",
    "OwnRows",
    "answer_loss",
    "answer_states",
    "collate",
    "held_out_value",
    "loss_of",
    "matched_by",
    "own_rows_of",
]

_SCORED = 256  # rows of logits of both models at once


class Answers(Dataset[dict[str, list[int]]]):
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


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right; mask and labels mark padding, never an id."""
    width = max(len(r["input_ids"]) for r in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([r[key] + [value] * (width - len(r[key])) for r in rows])

    mask_BT = torch.tensor([[True] * len(r["input_ids"]) + [False] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED), "attention_mask": mask_BT}


class OwnRows:
    """Rows that a student draws while it is fitted.

    Steps are divided into windows of `source.every`, from the first on. What a step draws follows from the stream, the
    step, and the weights at the first step of its window that takes own rows. These answer the prompts of the data's
    rows, in a drawn order of all, then in another.

    Parameters
    ----------
    law : the student's, on the data's prompts. gather : brings it up to date with what is trained.
    prompt_index : (N,) of the data's rows.
    source : share of the steps, and for how many steps rows are drawn at once.
    stream : of the draws.

    Attributes
    ----------
    tokens : drawn so far, those after held-out prompts among them.
    """

    def __init__(
        self,
        law: CausalLaw,
        gather: Callable[[], None],
        prompt_index: NDArray[Any],
        source: Prefixes,
        training: Training,
        stream: Stream,
    ) -> None:
        self.law, self.gather, self.prompt_index, self.source, self.stream = law, gather, prompt_index, source, stream
        self.batch = training.per_device_train_batch_size
        self.rows = self.batch * training.gradient_accumulation_steps
        self.tokens = 0
        self._drawn: dict[int, Sequences] = {}
        self._order: dict[int, NDArray[np.int64]] = {}

    def takes(self, step: int) -> bool:
        """Whether a step learns from own rows."""
        return bool(self.stream.child("step").uniforms(step, 1, 1)[0, 0] < self.source.own)

    def step(self, step: int) -> Iterator[dict[str, Tensor]]:
        """Batches of a step that takes own rows."""
        if step not in self._drawn:
            every = self.source.every
            self._drawn = self._draw([t for t in range(step, step - step % every + every) if self.takes(t)])
        rows = Answers(self._drawn[step])
        for at in range(0, self.rows, self.batch):
            yield collate([rows[i] for i in range(at, at + self.batch)])

    def _draw(self, steps: list[int]) -> dict[int, Sequences]:
        u = np.concatenate([self._uniforms("rows", t * self.rows, self.rows) for t in steps])
        self.gather()
        drawn = self._from_law(u, np.concatenate([self._prompts(t) for t in steps]))
        return {t: drawn.take(slice(i * self.rows, (i + 1) * self.rows)) for i, t in enumerate(steps)}

    def _prompts(self, step: int) -> NDArray[np.int64]:
        """Prompts of a step's rows, (rows,)."""
        n, at = len(self.prompt_index), np.arange(step * self.rows, (step + 1) * self.rows)
        out = np.empty(self.rows, np.int64)
        for turn in np.unique(at // n):
            if turn not in self._order:
                self._order = {turn: np.argsort(self.stream.child("order", str(turn)).uniforms(0, n, 1)[:, 0])}
            now = at // n == turn
            out[now] = self.prompt_index[self._order[turn][at[now] % n]]
        return out

    def held_out(self, x: Sequences) -> Sequences:
        """Draw rows after the prompts of held-out ones, from the same uniforms at every evaluation."""
        return self._from_law(self._uniforms("held-out", 0, len(x)), x.prompt_index)

    def _uniforms(self, name: str, start: int, n: int) -> NDArray[np.float64]:
        return self.stream.child(name).uniforms(start, n, self.law.max_new_tokens)

    def _from_law(self, u: NDArray[np.float64], prompt_index: NDArray[np.int64]) -> Sequences:
        law, model, size = self.law, self.law.lm.model, self.law.block_rows
        was = model.training
        model.eval()
        parts = [law.draw(u[at : at + size], prompt_index[at : at + size]) for at in range(0, len(u), size)]
        model.train(was)
        self.tokens += sum(int(x.lengths.sum()) for x in parts)
        return Sequences.concatenate(parts)


def own_rows_of(
    request: FitRequest, law: CausalLaw, gather: Callable[[], None], training: Training, prompt_index: NDArray[Any]
) -> OwnRows | None:
    """Return what draws the student's own rows; None where it learns from the data's alone. Raises SpecError."""
    source = Prefixes.from_json(request.prefix_source)
    if not source.own:
        return None
    training.check_own_rows(source.every)
    return OwnRows(law, gather, prompt_index, source, training, request.stream.child("own"))


def loss_of(law: CausalLaw, training: Training, matched: Matched | None = None) -> Loss:
    """The loss of a batch of rows."""
    return partial(answer_loss, dtype=_dtype(training), packs=_packs(law.lm), matched=matched)


def _dtype(training: Training) -> torch.dtype:
    return torch.bfloat16 if training.bf16 else torch.float32


def _packs(lm: OpenedLM) -> bool:
    """Whether rows may share prompts: on the CPU only, where it was measured."""
    return lm.device.type == "cpu" and takes_packed_rows(lm.network)


class Matched(NamedTuple):
    """A teacher's laws that a student is to match, and how it is measured how far it is from them.

    `held_out` are the same laws in float32, as students are scored.
    """

    laws: TeacherLaws | LawsAlongRows
    divergence: Divergence | PolicyGradient
    held_out: TeacherLaws | LawsAlongRows


def matched_by(
    request: FitRequest,
    training: Training,
    data: Sequences | TrainingRows,
    validate: Sequences | None,
    vocab_size: int,
) -> Matched | None:
    """Return what the objective matches; None for maximum likelihood. `vocab_size`: of the student.

    Raises
    ------
    SpecError : an objective that there is not, an infinite one, or one that learns nothing from such rows.
    FitError : an objective that needs a teacher, without one whose next-token laws can be had.
    LawMismatchError : laws that were kept along other rows, or in another form.
    """
    objective, source = Objective.from_json(request.loss), Prefixes.from_json(request.prefix_source)
    divergence = divergence_of(objective)
    kept = request.kept
    if (source.own or isinstance(divergence, PolicyGradient)) and not learns_from(
        objective, source, DENSE if kept is None else kept.law
    ):
        raise SpecError(f"{objective.label} learns nothing from rows of the {source.label}", got=request.prefix_source)
    if divergence is None:
        return None
    if request.selectivity is not None:
        refuse_infinite(objective, request.selectivity)
    if kept is not None:
        refuse_unkept(objective, kept.law, request.selectivity)
        along = LawsAlongRows(kept.law, kept.data, data, vocab_size)
        held_out = along if validate is None else LawsAlongRows(kept.law, kept.validate, validate, vocab_size)
        return Matched(along, divergence, held_out)
    if not isinstance(request.teacher, CausalLaw):
        raise FitError("this objective needs a teacher that is opened here", got=request.loss, fix="use mle")
    teacher, size = request.teacher, training.per_device_train_batch_size

    def laws(x: Sequences | TrainingRows | None, dtype: torch.dtype) -> TeacherLaws:
        states = partial(answer_states, dtype=dtype, packs=_packs(teacher.lm))
        out = TeacherLaws(teacher, request.selectivity, states)
        if x is not None and source.own < 1:  # else the data's rows only give prompts
            out.remember(_batches(x, size, teacher.lm.device), int(x.lengths.sum()), dtype)
        return out

    return Matched(laws(data, _dtype(training)), divergence, laws(validate, torch.float32))


def held_out_value(
    law: CausalLaw,
    training: Training,
    matched: Matched,
    own: OwnRows | None = None,
    measure: Divergence | PolicyGradient | None = None,
) -> Callable[[Sequences], float]:
    """Return what gives the objective, or another `measure`, on held-out rows in float32, nats a token.

    The value of a policy gradient is the divergence whose gradient it estimates. With own rows these have their share.
    """
    measure = matched.divergence if measure is None else measure
    measure = measure if isinstance(measure, Divergence) else Divergence("kl_student_teacher")
    in_float32 = matched._replace(laws=matched.held_out, divergence=measure)
    loss = partial(answer_loss, packs=_packs(law.lm), matched=in_float32)

    @torch.no_grad()
    def mean(x: Sequences) -> float:
        tokens = int(x.lengths.sum())
        batches = _batches(x, training.per_device_eval_batch_size, law.lm.device)
        return sum(float(loss(law.lm, ids_BT, labels_BT, tokens)) for ids_BT, labels_BT in batches)

    def value(x: Sequences) -> float:
        share = 0.0 if own is None else own.source.own
        given = 0.0 if share == 1 else (1 - share) * mean(x)
        return given if own is None else given + share * mean(own.held_out(x))

    return value


def _batches(x: Sequences | TrainingRows, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels of all rows, by length."""
    rows, order = Answers(x), np.argsort(x.lengths, kind="stable")
    for at in range(0, len(order), size):
        batch = collate([rows[int(i)] for i in order[at : at + size]])
        yield batch["input_ids"].to(device), batch["labels"].to(device)


def answer_states(lm: OpenedLM, ids_BT: Tensor, labels_BT: Tensor, *, dtype: torch.dtype, packs: bool) -> Tensor:
    """States that predict the answer tokens, (M, D), row by row. `packs`: rows may share prompts."""
    rows = pack(ids_BT, labels_BT) if packs else None
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        if rows is not None:
            return packed_states(lm.network, rows)
        # Padded rows need no mask: padding is on the right, and no answer token attends to it.
        return lm.network.body(ids_BT)[:, :-1][labels_BT[:, 1:] != IGNORED]


def answer_loss(
    lm: OpenedLM,
    ids_BT: Tensor,
    labels_BT: Tensor,
    n_items: float,
    *,
    dtype: torch.dtype = torch.float32,
    packs: bool = False,
    matched: Matched | None = None,
) -> Tensor:
    """The objective summed over the answer tokens, divided by `n_items`; nats. `packs`: rows may share prompts.

    Without `matched` their negative log-likelihood. The value of a policy gradient is the estimate of KL(q, p) from the
    rows' tokens; its gradient is not that of the value.
    """
    ids_M = labels_BT[:, 1:][labels_BT[:, 1:] != IGNORED]
    states_MD = answer_states(lm, ids_BT, labels_BT, dtype=dtype, packs=packs)
    if not len(ids_M):  # nothing to learn, but every parameter needs a gradient, here zero
        last = lm.network.head(states_MD.to(lm.network.head.weight.dtype)) if lm.is_split else states_MD
        return last.float().sum() * 0.0
    head = lm.network.head if lm.is_split else None
    if matched is not None:
        theirs, measure = matched.laws.rows(ids_BT, labels_BT), matched.divergence
        over: dict[str, Any] = {
            "n_items": n_items,
            "vocab_size": lm.vocab_size,
            "holes": lm.holes,
            "dtype": dtype if head is not None else torch.float32,
        }
        states = states_MD if head is not None else lm.network.logits(states_MD).float()
        matrix = None if head is None else (head.weight, head.bias)
        if isinstance(measure, PolicyGradient):
            laws = of_type(TeacherRows, theirs)
            target = _advantages(lm, states_MD.detach(), ids_M, _ends(labels_BT), laws, measure)
            return linear_policy_gradient(states, matrix, ids_M, target, **over)
        return linear_divergence(states, matrix, ids_M, (theirs, measure), **over)
    if head is not None:
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


def _ends(labels_BT: Tensor) -> NDArray[np.int64]:
    """Where each row's answer tokens end among those of all rows, (B,)."""
    return np.cumsum((labels_BT[:, 1:] != IGNORED).sum(1).cpu().numpy())


@torch.no_grad()
def _advantages(
    lm: OpenedLM, states_MD: Tensor, ids_M: Tensor, ends_B: NDArray[np.int64], theirs: TeacherRows, form: PolicyGradient
) -> tuple[Tensor, Tensor]:
    """Return log p - log q of each token, and its advantage, (M,) each, nats."""
    if lm.is_split:
        ours = TeacherRows(states_MD, lm.network.head.weight, lm.network.head.bias, lm.holes)
    else:
        ours = TeacherRows(lm.network.logits(states_MD))
    ours, p, n = ours.to(torch.float32), theirs.to(torch.float32), lm.vocab_size
    ids, found, expected = ids_M.cpu().numpy(), np.empty(len(ids_M)), np.zeros(len(ids_M))
    for at in range(0, len(ids), _SCORED):
        rows = slice(at, min(at + _SCORED, len(ids)))
        own, other = ours.logits(rows), p.logits(rows)
        q = next_token.score(own, n, None, ids[rows], entropy=form.baseline)
        found[rows] = next_token.score(other, n, theirs.selectivity, ids[rows]).selected - q.selected
        if form.baseline:
            expected[rows] = q.entropy - next_token.cross_entropy(own, None, other, theirs.selectivity, n)
    advantage = found - expected
    if form.to_go:
        for start, end in itertools.pairwise((0, *ends_B.tolist())):
            to_go = found[start:end][::-1].cumsum()[::-1] - expected[start:end]
            advantage[start:end] = to_go / np.arange(end - start, 0, -1) if form.length_normalised else to_go
    made = (torch.from_numpy(x).to(states_MD.device, torch.float32) for x in (found, advantage))
    return next(made), next(made)
