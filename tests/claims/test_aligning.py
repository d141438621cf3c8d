"""Policy gradients and DPO from finite samples, against enumeration of all rows, autograd, and the exact tilt."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from hydrometer.claims.aligning import Pairs, dpo, policy_gradient, policy_gradient_of, row_rewards
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.models.markov.law import Markov, contexts
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.rows.sequences import Sequences

V, LONGEST, B = 3, 4, 0.4
FIRST = np.zeros((LONGEST, V))
FIRST[0, -1] = 1.0
ANY = np.random.default_rng(5).normal(size=(LONGEST, V))


def chain(seed: int, order: int) -> Markov:
    return MarkovTruth(order=order, vocabulary=V, max_new_tokens=LONGEST, end=0.3, seed=seed).law()


def every_row() -> Sequences:
    """All rows that a chain can say."""
    rows = [
        row
        for n in range(1, LONGEST + 1)
        for row in product(range(V), repeat=n)
        if 0 not in row[:-1] and (row[-1] == 0 or n == LONGEST)
    ]
    ids = np.array([[*row, *[0] * (LONGEST - len(row))] for row in rows], np.int64)
    lengths = np.array([len(row) for row in rows], np.int64)
    n = len(rows)
    return Sequences(((),), np.zeros(n, np.int64), ids, lengths, ids[np.arange(n), lengths - 1] == 0, np.zeros(n))


def torch_log_prob(logits: Any, rows: Sequences, order: int) -> Any:
    """Log-probability of rows under logits (C, V), differentiable."""
    log_q = torch.log_softmax(logits, dim=1)
    at = torch.from_numpy(contexts(rows.ids, order, V))
    return (log_q[at, torch.from_numpy(rows.ids)] * torch.from_numpy(rows.within)).sum(dim=1)


def first_step_tilt(law: Markov, strength: float) -> Markov:
    """The tilt by a reward of the first id, which is a chain of one table: only its first context changes."""
    table = law.log_table.copy()
    table[law.start] = law.tilted(FIRST, strength).step_table(0)[law.start]
    return Markov(table, order=law.order, max_new_tokens=LONGEST)


def kl(p: Markov, q: Markov) -> float:
    rows = every_row()
    log_p = p.log_prob(rows)
    return float(np.exp(log_p) @ (log_p - q.log_prob(rows)))


@pytest.mark.parametrize("order", [1, 2])
def test_policy_gradient_is_that_of_the_objective(order: int) -> None:
    reference, law, rows = chain(1, order), chain(2, order), every_row()
    logits = torch.from_numpy(law.log_table.copy()).requires_grad_()
    log_q, log_p = torch_log_prob(logits, rows, order), torch.from_numpy(reference.log_prob(rows))
    (log_q.exp() * (torch.from_numpy(row_rewards(rows, ANY)) - B * (log_q - log_p))).sum().backward()
    wanted = logits.grad.numpy()
    found = np.array(
        [policy_gradient_of(law.log_table, reference, law.sample(20, seed=Stream(i)), ANY, B) for i in range(4000)]
    )
    se = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    met = se > 0
    assert met.sum() > V
    assert np.abs(wanted[~met]).max() < 1e-12  # contexts that no row meets
    assert (np.abs(found.mean(axis=0) - wanted)[met] < 5 * se[met]).all()
    assert (np.abs(wanted)[met] > 20 * se[met]).any()


def test_policy_gradient_stands_still_at_the_tilt_without_noise() -> None:
    reference = chain(1, 2)
    tilt = first_step_tilt(reference, B)
    rows = tilt.sample(50, seed=3)
    assert np.abs(policy_gradient_of(tilt.log_table, reference, rows, FIRST, B)).max() < 1e-15
    assert np.abs(policy_gradient_of(tilt.log_table, reference, rows, FIRST, 2 * B)).max() > 1e-3


@pytest.mark.parametrize("order", [1, 2])
def test_policy_gradient_ends_at_the_tilt(order: int) -> None:
    reference = chain(1, order)
    found = policy_gradient(reference, FIRST, B, rows=200_000, rate=1.0, stream=Stream(0))
    assert kl(reference, first_step_tilt(reference, B)) > 0.05
    assert kl(found, first_step_tilt(reference, B)) < 1e-6


@pytest.mark.parametrize("order", [1, 2])
def test_loss_and_gradient_of_dpo_are_those_of_autograd(order: int) -> None:
    reference, law = chain(1, order), chain(2, order)
    pairs = Pairs.drawn(reference, ANY, B, pairs=40, sharpness=3.0, stream=Stream(7))
    rows = reference.sample(80, seed=Stream(7).child("rows"))
    value = row_rewards(rows, ANY)
    better = value[:40] - value[40:]
    tosses = Stream(7).child("preferences").uniforms(0, 40, 1)[:, 0]
    first = np.where(tosses < 1 / (1 + np.exp(-3.0 * better)), 1.0, -1.0)
    logits = torch.from_numpy(law.log_table.copy()).requires_grad_()
    ratio = torch_log_prob(logits, rows, order) - torch.from_numpy(reference.log_prob(rows))
    margin = 3.0 * B * torch.from_numpy(first) * (ratio[:40] - ratio[40:])
    assert 0 < (better == 0).sum() < 40
    loss = -torch.nn.functional.logsigmoid(margin)[torch.from_numpy(better != 0)].mean()
    loss.backward()
    found, gradient = pairs(law.log_table.ravel())
    assert found == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, logits.grad.numpy().ravel(), atol=1e-13)


@pytest.mark.parametrize("order", [1, 2])
def test_dpo_ends_at_the_tilt(order: int) -> None:
    reference = chain(1, order)
    tilt = first_step_tilt(reference, B)
    ends = [dpo(reference, FIRST, B, rows=40_000, stream=Stream(i)) for i in range(8)]
    odds = np.array([x.log_table[x.start, -1] - x.log_table[x.start, 1] for x in ends])
    wanted = tilt.log_table[tilt.start, -1] - tilt.log_table[tilt.start, 1]
    se = odds.std(ddof=1) / np.sqrt(len(odds))
    assert abs(odds.mean() - wanted) < 5 * se
    assert se < 0.1 * abs(wanted - reference.log_table[reference.start, -1] + reference.log_table[reference.start, 1])
    few = [kl(dpo(reference, FIRST, B, rows=400, stream=Stream(i)), tilt) for i in range(8)]
    assert np.mean([kl(x, tilt) for x in ends]) < 0.1 * np.mean(few)


def test_what_is_never_drawn_is_not_learnt() -> None:
    table = chain(1, 1).log_table.copy()
    start = chain(1, 1).start
    table[start, -1] = -20.0
    table[start] -= np.logaddexp.reduce(table[start])
    reference = Markov(table, order=1, max_new_tokens=LONGEST)
    before = table[start, -1]
    exact = reference.tilted(FIRST, 0.1).step_table(0)[start, -1]
    assert exact - before > 9.9
    for end in (
        policy_gradient(reference, FIRST, 0.1, rows=5000, stream=Stream(0)),
        dpo(reference, FIRST, 0.1, rows=5000, stream=Stream(0)),
    ):
        assert end.log_table[start, -1] - before < 0.5


def test_bad_input_is_refused() -> None:
    law = chain(1, 1)
    stepwise = law.tilted(FIRST, 1.0)
    with pytest.raises(InputError, match="one table"):
        policy_gradient(stepwise, FIRST, B, rows=1000, stream=Stream(0))
    with pytest.raises(InputError, match="one table"):
        dpo(stepwise, FIRST, B, rows=1000, stream=Stream(0))
    with pytest.raises(InputError, match="rows for one"):
        policy_gradient(law, FIRST, B, rows=50, stream=Stream(0))
    with pytest.raises(InputError, match="ten rows"):
        dpo(law, FIRST, B, rows=8, stream=Stream(0))
