"""Aligning regressions of next tokens, against autograd and the exact tilt; and both orders, against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hydrometer.claims import run_claim
from hydrometer.claims.aligning import WAYS
from hydrometer.claims.claim_verdict import over_worlds
from hydrometer.claims.light_component import LightWorld
from hydrometer.claims.measures.align_first import World, measure
from hydrometer.claims.next_tokens import Contexts, at_temperature, token_worlds
from hydrometer.claims.token_alignment import (
    TokenRun,
    Tokens,
    _chosen,
    dpo_tokens,
    group_gradient,
    policy_gradient_tokens,
    token_ends,
    token_pairs,
)
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from tiny import make_llama, make_tokenizer

C, K, D, B = 5, 4, 2, 0.5
REWARD = np.array([0.0, 1.0, 0.0, 1.0])
RNG = np.random.default_rng(3)
LOG_P = at_temperature(RNG.normal(size=(C, K)), 1.0)
STATES = np.column_stack([RNG.normal(size=C), np.ones(C)])
TILT = at_temperature(LOG_P + REWARD / B, 1.0)


def mean_kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
    return float((np.exp(log_p) * (log_p - log_q)).sum() / len(log_p))


def test_policy_gradient_in_weights_is_that_of_the_objective() -> None:
    weights = torch.from_numpy(RNG.normal(size=(D, K))).requires_grad_()
    log_q = torch.log_softmax(torch.from_numpy(LOG_P) + torch.from_numpy(STATES) @ weights, dim=1)
    (log_q.exp() * (torch.from_numpy(REWARD) - B * (log_q - torch.from_numpy(LOG_P)))).sum(dim=1).mean().backward()
    wanted, laws = weights.grad.numpy(), log_q.detach().numpy()
    found = []
    for i in range(4000):
        u = Stream(i).uniforms(0, 6, 4)
        at = (u[:, 0] * C).astype(int)
        ids = _chosen(laws[at], u[:, 1:])
        found.append(STATES[at].T @ group_gradient(laws[at], LOG_P[at], ids, REWARD, B))
    mean, se = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(mean - wanted) < 5 * se).all()
    assert (np.abs(wanted) > 20 * se).any()


def test_policy_gradient_stands_still_at_the_tilt_without_noise() -> None:
    at = np.arange(C)
    ids = _chosen(TILT, Stream(0).uniforms(0, C, 50))
    assert np.abs(group_gradient(TILT[at], LOG_P[at], ids, REWARD, B)).max() < 1e-15
    assert np.abs(group_gradient(TILT[at], LOG_P[at], ids, REWARD, 2 * B)).max() > 1e-3


def test_policy_gradient_ends_at_the_tilt() -> None:
    end = policy_gradient_tokens(LOG_P, STATES, REWARD, Tokens(drawn=200_000, rate=1.0), B, Stream(0))
    assert mean_kl(LOG_P, TILT) > 0.05
    assert mean_kl(TILT, end) < 1e-6


def test_pairs_are_of_one_context_and_preferred_as_bradley_and_terry_have_it() -> None:
    world = Tokens(drawn=40_000, sharpness=2.0)
    pairs = token_pairs(LOG_P, REWARD, world, B, Stream(4))
    gap = pairs.gap.toarray().reshape(-1, C, K)
    assert pairs.scale == 2.0 * B
    assert ((gap == 1).sum(axis=(1, 2)) == 1).all()
    assert ((gap == -1).sum(axis=(1, 2)) == 1).all()
    assert (gap.sum(axis=2) == 0).all()  # of one context
    better = (gap @ REWARD).sum(axis=1)
    assert set(better) == {-1.0, 1.0}
    wanted = np.exp(LOG_P) @ REWARD
    unequal = float((2 * wanted * (1 - wanted)).mean())
    assert abs(len(pairs) / 20_000 - unequal) < 5 * np.sqrt(unequal * (1 - unequal) / 20_000)
    prefers = 1 / (1 + np.exp(-2.0))
    assert abs((better > 0).mean() - prefers) < 5 * np.sqrt(prefers * (1 - prefers) / len(pairs))


def test_dpo_ends_at_the_tilt_and_moves_along_the_states_alone() -> None:
    world = Tokens(drawn=40_000)
    ends = [dpo_tokens(LOG_P, STATES, REWARD, world, B, Stream(i)) for i in range(8)]
    odds = np.array([np.log(np.exp(x) @ REWARD / (1 - np.exp(x) @ REWARD)) for x in ends])
    shares = np.exp(TILT) @ REWARD
    se = odds.std(axis=0, ddof=1) / np.sqrt(len(odds))
    assert (np.abs(odds.mean(axis=0) - np.log(shares / (1 - shares))) < 5 * se).all()
    assert (se < 0.1 / B).all()
    few = Tokens(drawn=400)
    of_few = [mean_kl(TILT, dpo_tokens(LOG_P, STATES, REWARD, few, B, Stream(i))) for i in range(8)]
    assert np.mean([mean_kl(TILT, x) for x in ends]) < 0.1 * np.mean(of_few)
    moved = ends[0] - LOG_P
    moved = moved - moved[:, :1]  # of laws, the normaliser aside
    left = moved - STATES @ np.linalg.lstsq(STATES, moved, rcond=None)[0]
    assert np.abs(moved).max() > 1
    assert np.abs(left).max() < 1e-12


def made_up(states: np.ndarray) -> Contexts:
    return Contexts(LOG_P, (" so", "1st", " on", "42"), (states, np.eye(C)))


MANY = Tokens(rows=(300_000,), train=300_000, drawn=100_000, strengths=(B,), temperatures=(1.0,), kinds=("number",))


def test_the_order_is_nothing_where_a_student_of_many_rows_can_be_the_target() -> None:
    run, base = TokenRun(MANY, made_up(np.eye(C)), Stream(1)), next(iter(MANY.settings().values()))
    np.testing.assert_array_equal(run.reward("number"), REWARD)
    unaligned = mean_kl(TILT, LOG_P)
    for way, left in zip(WAYS, (0.005, 0.005, 0.05), strict=True):
        for order, end in run.ends(base, way).items():
            assert end.kl_target_student < left * unaligned, (way, order)
            assert end.reward == pytest.approx(1, abs=0.05), (way, order)


def test_a_student_that_knows_no_context_overshoots_aligned_last() -> None:
    world = MANY.model_copy(update={"rows": (300_000, 500)})
    run, base = TokenRun(world, made_up(np.ones((C, 1))), Stream(2)), next(iter(MANY.settings().values()))
    p, target = np.exp(LOG_P), np.exp(TILT)
    lasts = at_temperature(np.log(p.mean(axis=0, keepdims=True)) + REWARD / B, 1.0)
    laws = {"first": np.log(target.mean(axis=0, keepdims=True)), "last": lasts}
    assert np.exp(lasts) @ REWARD > 1.02 * (target @ REWARD).mean()
    for order, end in run.ends(base, "exact tilt").items():
        q = np.exp(laws[order])
        wanted = {
            "reward": float((q @ REWARD)[0] / (target @ REWARD).mean()),
            "precision": float((q * TILT).sum() / C),
            "recall": float((target * laws[order]).sum() / C),
            "kl_student_target": float((q * (laws[order] - TILT)).sum() / C),
            "kl_target_student": float((target * (TILT - laws[order])).sum() / C),
        }
        for figure, value in wanted.items():
            assert getattr(end, figure) == pytest.approx(value, rel=0.02), (order, figure)
    drawn = run.ends(base._replace(rows=500), "exact tilt")
    share = {"first": float((target @ REWARD).mean()), "last": float((p @ REWARD).mean())}
    for order, end in drawn.items():
        assert abs(end.rare_rows - 500 * share[order]) < 5 * np.sqrt(500 * share[order] * (1 - share[order])), order


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    folder = tmp_path_factory.mktemp("model")
    make_llama(vocab=24, seed=3).save_pretrained(folder)
    make_tokenizer(24).save_pretrained(folder)
    few = {"prompts": 4, "worlds": 2, "ids": 24, "max_new_tokens": 6, "layers": (1, 3), "directions": 3}
    return Tokens(source=str(folder), **few, rows=(60,), strengths=(0.5,), train=500, drawn=1000)


def test_kinds_are_of_texts_and_a_check_is_a_paired_gap_over_worlds(tokens: Tokens) -> None:
    tokens = tokens.model_copy(update={"kinds": ("number",)})
    light = LightWorld(train=2000, rows=100, students=(1,), rarities=(0.01,), strengths=(0.2,), temperatures=(1.0,))
    one = {"students": (1,), "rarities": (0.1,), "rows": (50,), "strengths": (0.2,), "temperatures": (1.0,)}
    small = {"order": 1, "teacher": 1, "vocabulary": 4, "max_new_tokens": 6, "drawn": (1000,), "train": 2000}
    asked = World(**small, **one, light=light, language_model=tokens)
    measured = measure(asked, range(2))
    stream = Stream(0).child("align-first", "tokens")
    runs = [
        TokenRun(tokens, c, stream.child(str(w))) for w, c in enumerate(token_worlds(tokens, stream.child("answers")))
    ]
    words = np.array(runs[0].contexts.texts)
    np.testing.assert_array_equal(runs[0].reward("number"), [w[0] == "w" for w in words])
    assert 15 < runs[0].reward("number").sum() < 24
    cold = tokens.settings()["next tokens, temperature 0.7"]
    ends = [r.ends(cold, "DPO") for r in runs]
    for figure, unit in (("reward", "of the target's"), ("recall", "nats")):
        wanted = over_worlds([getattr(e["first"], figure) - getattr(e["last"], figure) for e in ends])
        (found,) = (
            c for c in measured.checks if c.condition == f"{figure}, next tokens, temperature 0.7" and "DPO" in c.figure
        )
        assert (found.estimate.value, found.estimate.se) == (wanted.value, wanted.se)
        assert found.figure.endswith(unit)
    assert len(measured.checks) == 2 * 2 + 3 + 2 * 2 * len(tokens.settings())
    found = token_ends(tokens, 0)
    for w, r in enumerate(runs):
        teacher = np.exp(r.teacher) @ r.reward("number")
        assert found.shares[w, 0, 1] == teacher.mean()
        assert found.shares[w, 1, 0] <= found.seldom[w] * 0.001
    base = next(iter(tokens.settings().values()))
    np.testing.assert_array_equal(found.by_context[0], np.exp(runs[0].target(base)) @ runs[0].reward("number"))
    assert len(measured.charts) == 6


def test_what_makes_no_sense_is_refused_in_a_line(tokens: Tokens, tmp_path: Path) -> None:
    run, base = TokenRun(MANY, made_up(np.eye(C)), Stream(1)), next(iter(MANY.settings().values()))
    with pytest.raises(InputError, match="no id of a world is of this kind; got 'bracket'"):
        run.ends(base._replace(kind="bracket"), "DPO")
    for set_to, said in (
        ("batch=102", "a batch is whole groups"),
        ("drawn=50", "a batch is whole groups, and at most the rows drawn"),
        ("kinds=[verb]", "number"),
        ("layers=[3]", "layers"),
    ):
        with pytest.raises(SpecError, match=said) as e:
            run_claim("align-first", out=tmp_path, overrides=[f"world.language_model.{set_to}"])
        assert "\n" not in str(e.value)
