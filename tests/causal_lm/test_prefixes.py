"""Frontiers of a language model against the enumeration of all its answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

import hydrometer as hm
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.rows.sequences import Sequences
from hydrometer.stages.judge import scores_of
from naive import PROMPTS, STOP

LONGEST = 3


def every(law: CausalLaw, longest: int) -> Sequences:
    """All answers of at most so many tokens, prefixes of longer ones among them."""
    v, stop = law.lm.vocab_size, law.stop_ids
    going = [i for i in range(v) if i not in stop]
    rows = [(*head, last) for n in range(1, longest + 1) for head in itertools.product(going, repeat=n - 1)
            for last in (range(v) if n == longest else stop)]  # fmt: skip
    lengths = np.array([len(r) for r in rows])
    ids = np.zeros((len(rows), longest), np.int64)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = r
    zeros = np.zeros(len(rows), np.int64)
    return Sequences(law.prompts.ids, zeros, ids, lengths, np.isin(ids[np.arange(len(rows)), lengths - 1], stop),
                     zeros.astype(float))  # fmt: skip


@pytest.mark.parametrize("s", [hm.Selectivity(temperature=0.4), hm.Selectivity(top_k=3)])
def test_frontiers_are_the_enumerated_ones_at_every_prefix_length(small: CausalLM, s: hm.Selectivity) -> None:
    p = small.law("w3 w4", max_new_tokens=LONGEST, stop=[1])
    q = p.select(s)
    found = hm.judge(p, q, n=600, seed=4)
    for m in (1, 2, LONGEST):
        x = every(p, m)
        a, b = (np.exp(law.score_steps(x).selected.sum(-1)) for law in (p, q))
        assert a.sum() == pytest.approx(1, abs=1e-4)
        exact = {
            "total_variation": 0.5 * np.abs(a - b).sum(),
            "prd_alpha_two": np.minimum(b, 2 * a).sum(),
            "prd_beta_half": np.minimum(a, 2 * b).sum(),
        }
        for name, value in exact.items():
            e = found[name if m == LONGEST else f"{name}_first_{m}"]
            assert e.value is not None
            assert e.se is not None
            assert e.se > 0
            assert abs(e.value - value) < 4.5 * e.se + 1e-5, (name, m, e, value)


def test_scores_of_prefixes_are_those_of_the_tokens(llama: CausalLM) -> None:
    p = llama.law(PROMPTS, max_new_tokens=6, stop=STOP, block_rows=12)
    q = p.select(hm.Selectivity(top_k=5))
    x, y = p.sample(12, seed=1), q.sample(12, seed=2)
    s = scores_of(p, q, x, y)
    assert s.truth_first is not None
    assert s.law_first is not None
    for first, rows, law in zip((*s.truth_first, *s.law_first), (x, x, y, y), (p, q, p, q), strict=True):
        steps = law.score_steps(rows).selected
        assert first.shape == (12, 4)  # 1, 2, 4 tokens, and whole rows of up to 6
        for k, m in enumerate((1, 2, 4)):
            assert first[:, k] == pytest.approx(steps[:, :m].sum(-1), abs=1e-9)
        assert first[:, -1] == pytest.approx(law.log_prob(rows), abs=1e-9)
