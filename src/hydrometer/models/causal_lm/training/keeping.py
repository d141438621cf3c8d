"""Keeps a teacher's next-token laws along rows, and measures what fits from them leave out.

Shapes: M answer tokens, m of a chunk, k kept ids, V ids that exist, R positions at which the whole law is kept.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrometer.core.distillation import TeacherLaw
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.networks.selected_logits import inverse_temperature, running_sum, selected_log_weights
from hydrometer.models.causal_lm.training.answer_loss import Answers, answer_states, collate
from hydrometer.models.causal_lm.training.kept_rows import KeptRows
from hydrometer.models.causal_lm.training.losses import TeacherRows, linear_divergence
from hydrometer.models.causal_lm.training.teacher_laws import LawsAlongRows, TeacherLaws
from hydrometer.models.objectives import Divergence
from hydrometer.models.rows.kept_laws import WHOLE_LAWS, KeptBlock, names_of
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["keep", "keep_served", "left_out"]

_ROWS, _POSITIONS = 16, 64  # run together; whole laws at once in float64
_ROUNDING = 2.0**-24


@torch.no_grad()
def keep(teacher: CausalLaw, x: Sequences, asked: TeacherLaw, stream: Stream, start: int) -> KeptBlock:
    """Run a selected teacher along rows, and keep `asked` of its law at every answer token.

    Ids are drawn systematically, by one uniform a position: an id of probability p is drawn k p times, rounded down or
    up, so that its share is as unbiased as that of independent draws, and varies less. Equal rows have equal draws,
    since fits know a row by what it says.

    Parameters
    ----------
    start : where these rows begin among those of a fit; beside row 0 whole laws are kept.

    Raises
    ------
    InputError : more ids than there are.
    """
    lm = teacher.lm
    if asked.k > lm.vocab_size:
        raise InputError("a law has fewer ids than are to be kept", got=(asked.k, lm.vocab_size))
    laws = TeacherLaws(teacher, teacher.selectivity, partial(answer_states, dtype=torch.float32, packs=False))
    names, width, most = names_of(x), x.ids.shape[1], max(x.ids.shape[1], teacher.max_new_tokens)
    own = (stream.child("ids", name.tobytes().hex()).uniforms(0, 1, most)[0, :width] for name in names)
    u_M = np.stack(list(own))[x.within]
    whole_at = np.empty(0, np.int64)
    if start == 0:
        whole_at = np.sort((stream.child("whole").uniforms(0, 1, WHOLE_LAWS)[0] * len(u_M)).astype(np.int64))
    rows, parts, whole, done = Answers(x), list[KeptBlock](), list[NDArray[np.float32]](), 0
    for at in range(0, len(x), _ROWS):
        batch = collate([rows[i] for i in range(at, min(at + _ROWS, len(x)))])
        theirs = laws.rows(batch["input_ids"].to(lm.device), batch["labels"].to(lm.device)).to(torch.float32)
        for first in range(0, len(theirs.states), _POSITIONS):
            logits_mV = theirs.logits(slice(first, first + _POSITIONS))[:, : lm.vocab_size]
            log_p_mV = selected_log_weights(logits_mV, teacher.selectivity).log_weights.double().log_softmax(-1)
            m = len(log_p_mV)
            parts.append(_kept(log_p_mV, asked, torch.from_numpy(u_M[done : done + m])))
            wanted = whole_at[(whole_at >= done) & (whole_at < done + m)] - done
            whole.append(log_p_mV[torch.from_numpy(wanted).to(log_p_mV.device)].float().cpu().numpy())
            done += m
    found = replace(KeptBlock.join(parts), names=names)
    return found if start else replace(found, whole_at=whole_at, whole=np.concatenate(whole))


def _kept(log_p_mV: Tensor, asked: TeacherLaw, u_m: Tensor) -> KeptBlock:
    dtype = np.min_scalar_type(log_p_mV.shape[1] - 1)
    if not asked.is_sampled:
        log_p_mk, ids_mk = log_p_mV.topk(asked.k, dim=-1)
        rest_m = log_p_mV.scatter(-1, ids_mk, -math.inf).logsumexp(-1)
        ids, rest, log_p = (x.cpu().numpy() for x in (ids_mk, rest_m, log_p_mk))
        return KeptBlock(ids.astype(dtype), rest.astype(np.float32), log_p.astype(np.float32))
    p_mV = log_p_mV.exp()
    cdf_mV = running_sum(p_mV)
    at_mk = (torch.arange(asked.k, device=cdf_mV.device) + u_m.to(cdf_mV.device)[:, None]) / asked.k * cdf_mV[:, -1:]
    last_m1 = (cdf_mV < cdf_mV[:, -1:]).sum(-1, keepdim=True)  # rounding may put a point at the end of the whole mass
    ids_mk = torch.minimum(torch.searchsorted(cdf_mV, at_mk, right=True), last_m1)
    entropy_m = -torch.where(p_mV > 0, p_mV * log_p_mV, 0.0).sum(-1)
    return KeptBlock(ids_mk.cpu().numpy().astype(dtype), entropy_m.cpu().numpy().astype(np.float32))


def keep_served(teacher: ServedLaw, x: Sequences, k: int) -> KeptBlock:
    """Ask a served teacher for its likeliest ids at every answer token.

    It tells its law at temperature 1. At another its likeliest ids' law over their own sum is known, and no mass of the
    others: none is kept of them. A mass below that of rounding is taken for that. Raises StageError.
    """
    ids, log_p = teacher.likeliest(x, k)
    rest, s = np.log(np.maximum(1 - np.exp(log_p).sum(-1), _ROUNDING)), teacher.selectivity
    if s is not None and not s.is_neutral:
        log_p = log_p * inverse_temperature(s)
        log_p, rest = log_p - np.logaddexp.reduce(log_p, -1, keepdims=True), np.full(len(ids), -np.inf)
    elif k == teacher.lm.vocab_size:
        rest = np.full(len(ids), -np.inf)
    dtype = np.min_scalar_type(teacher.lm.vocab_size - 1)
    return KeptBlock(ids.astype(dtype), rest.astype(np.float32), log_p.astype(np.float32), names_of(x))


def left_out(
    law: CausalLaw, laws: LawsAlongRows, x: Sequences | TrainingRows, d: Divergence, size: int
) -> dict[str, object]:
    """Compare an objective from kept laws with that from whole ones, at the student as it begins.

    Parameters
    ----------
    law : the student's. x : rows along which `laws` were kept. size : positions run at once.

    Returns
    -------
    Of the positions at which whole laws were kept: how many, the mean objective from whole laws, the mean difference
    from it with its standard error, nats a token; and of the gradients by all weights the cosine, and the norm as a
    share of the whole one's, both None where one is zero.
    """
    first, lm = laws.first, law.lm
    if first.whole is None or first.whole_at is None:
        return {"positions": 0}
    was = lm.model.training, [p.requires_grad for p in lm.model.parameters()]
    weights = list(lm.model.eval().requires_grad_(True).parameters())
    total = {form: [torch.zeros_like(p) for p in weights] for form in ("whole", "kept")}
    values = {form: list[float]() for form in total}
    rows, tokens = Answers(x), first.whole_at
    for at in range(0, len(tokens), size):
        here = tokens[at : at + size]
        of = np.searchsorted(laws.offsets, here, "right") - 1
        batch = collate([rows[int(i)] for i in of])
        states_MD = answer_states(
            lm, batch["input_ids"].to(lm.device), batch["labels"].to(lm.device), dtype=torch.float32, packs=False
        )
        begins = np.cumsum([0, *np.diff(laws.offsets)[of][:-1]])
        states_MD = states_MD[torch.from_numpy(begins + here - laws.offsets[of]).to(lm.device)]
        whole = TeacherRows(torch.from_numpy(np.array(first.whole[at : at + size])).to(lm.device))
        kept = laws.at([(int(t), 1) for t in here]).on(lm.device)
        for form, theirs in {"whole": whole, "kept": kept}.items():
            values[form] += _compare(lm, states_MD, theirs, d, len(tokens), total[form])
    lm.model.train(was[0])
    for p, needed in zip(weights, was[1], strict=True):
        p.requires_grad_(needed)
    gap = np.array(values["kept"]) - np.array(values["whole"])
    a, b = total["whole"], total["kept"]
    dot, aa, bb = _product(a, b), _product(a, a), _product(b, b)
    return {
        "positions": len(tokens),
        "whole": float(np.mean(values["whole"])),
        "difference": {"value": float(gap.mean()), "se": float(gap.std(ddof=1) / math.sqrt(len(gap)))},
        "gradient_cosine": dot / math.sqrt(aa * bb) if aa and bb else None,
        "gradient_norm": math.sqrt(bb / aa) if aa else None,
    }


def _compare(
    lm: OpenedLM, states_MD: Tensor, theirs: TeacherRows | KeptRows, d: Divergence, n: int, total: list[Tensor]
) -> list[float]:
    """Return the objective at each of some positions, and add the gradient of their sum over `n` to `total`."""
    head = lm.network.head if lm.is_split else None
    states = states_MD if head is not None else lm.network.logits(states_MD).float()
    matrix = None if head is None else (head.weight, head.bias)
    unread = torch.zeros(len(states), dtype=torch.long, device=states.device)
    size, target = lm.vocab_size, (theirs, d)
    loss = linear_divergence(states, matrix, unread, target, n_items=n, vocab_size=size, holes=lm.holes)
    found = torch.autograd.grad(loss, list(lm.model.parameters()), retain_graph=True, materialize_grads=True)
    for sum_, part in zip(total, found, strict=True):
        sum_ += part
    ours = TeacherRows(states) if head is None else TeacherRows(states, head.weight, head.bias, lm.holes)
    with torch.no_grad():
        rows = [slice(i, i + 1) for i in range(len(states))]
        return [float(theirs.to_gradient(ours.logits(row).clone(), row, size, d, 1.0)) for row in rows]


def _product(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))
