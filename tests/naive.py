"""Oracles in float64: next-token laws by explicit sorts, sequences by one full forward pass a row."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.spec import Selectivity
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw

Floats = NDArray[np.float64]

SETTINGS = [
    None,
    Selectivity(temperature=0.6),
    Selectivity(top_p=0.9),
    Selectivity(top_k=4),
    Selectivity(min_p=0.1),
    Selectivity(temperature=0.8, top_k=6, top_p=0.95, min_p=0.02),
]
PROMPTS = ["w5", "w9 w10 w11 w12", "w7 w8"]
STOP = [1, *range(20, 32)]


def slug(s: object) -> str | None:
    return s.slug if isinstance(s, Selectivity) else "neutral" if s is None else None


def log_law(logits_MV: NDArray[np.floating], s: Selectivity | None) -> Floats:
    """Log-probabilities of the selected law, -inf where dropped; ties at an edge are kept."""
    return np.stack(
        [_log_softmax(_selected(row.astype(np.float64), s or Selectivity(temperature=1))) for row in logits_MV]
    )


def _selected(x: Floats, s: Selectivity) -> Floats:
    x = (x - x.max()) / (s.temperature or 1)
    if s.top_k is not None:
        x = np.where(x >= np.sort(x)[::-1][: s.top_k][-1], x, -np.inf)
    if s.top_p is not None and s.top_p < 1:
        ordered = np.sort(x)[::-1]
        cdf = np.exp(_log_softmax(ordered)).cumsum()
        x = np.where(x >= ordered[min(np.searchsorted(cdf, s.top_p), len(x) - 1)], x, -np.inf)
    if s.min_p:
        x = np.where(x >= math.log(s.min_p), x, -np.inf)
    return x


def _log_softmax(x: Floats) -> Floats:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def entropy(log_p: Floats) -> Floats:
    return cross_entropy(log_p, log_p)


def cross_entropy(log_a: Floats, log_b: Floats) -> Floats:
    log_b = np.where(log_a == -np.inf, 0, log_b)
    return -(np.exp(log_a) * log_b).sum(-1)


def naive_logits(law: CausalLaw, x: Sequences, i: int) -> NDArray[np.float32]:
    """Logits at each step of row i, no cache, no padding, (length, V)."""
    import torch

    prompt, answer = list(x.prompt_ids[x.prompt_index[i]]), x.row(i).tolist()
    with torch.no_grad():
        logits = law.lm.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, : law.lm.vocab_size]
    if law.lm.holes is not None:
        logits[:, law.lm.holes] = -math.inf
    return logits.float().numpy()


def naive_steps(law: CausalLaw, x: Sequences) -> Floats:
    """Log-probability of every token, (N, T), zero beyond a row's length."""
    out = np.zeros(x.ids.shape)
    for i in range(len(x)):
        n = x.lengths[i]
        out[i, :n] = log_law(naive_logits(law, x, i), law.selectivity)[np.arange(n), x.row(i)]
    return out


def naive_log_prob(law: CausalLaw, x: Sequences) -> Floats:
    return naive_steps(law, x).sum(-1)


def assert_right(law: CausalLaw, n: int = 24, seed: int = 3) -> Sequences:
    """What a draw records, what the scorer finds and what a full forward gives are one, up to 1e-4 nats a token."""
    from hydrometer.models.causal_lm.inference.scorer import score_steps

    x = law.sample(n, seed=seed)
    token_log_prob, unselected = x.token_log_prob, x.token_log_prob_unselected
    assert token_log_prob is not None
    assert unselected is not None
    assert x.near_edge is not None
    inside = x.near_edge == 0
    assert inside.mean() > 0.9
    scored = score_steps(law, x)
    naive, plain = naive_steps(law, x), naive_steps(replace(law, selectivity=None), x)
    for found in (token_log_prob, scored.selected):
        np.testing.assert_allclose(found[inside], naive[inside], atol=1e-4)
    for found in (unselected, scored.unselected):
        np.testing.assert_allclose(found[inside], plain[inside], atol=1e-4)
    np.testing.assert_allclose(x.log_prob, token_log_prob.sum(-1), atol=1e-4)
    np.testing.assert_allclose(law.log_prob(x)[inside], scored.selected.sum(-1)[inside], atol=1e-5)
    return x


def as_sequences(law: CausalLaw, answers: list[tuple[int, ...]]) -> Sequences:
    lengths = np.array([len(a) for a in answers])
    ids = np.zeros((len(answers), lengths.max()), np.int64)
    for i, a in enumerate(answers):
        ids[i, : len(a)] = a
    zeros = np.zeros(len(answers), np.int64)
    stopped = np.array([a[-1] in law.stop_ids for a in answers])
    return Sequences(law.prompts.ids, zeros, ids, lengths, stopped, zeros.astype(float))


def all_strings(law: CausalLaw) -> list[tuple[int, ...]]:
    out: list[tuple[int, ...]] = []
    going = [i for i in range(law.lm.vocab_size) if i not in law.stop_ids]
    for length in range(1, law.max_new_tokens + 1):
        for head in itertools.product(going, repeat=length - 1):
            out += [(*head, s) for s in law.stop_ids]
            if length == law.max_new_tokens:
                out += [(*head, g) for g in going]
    return out
