"""Worlds of next tokens, against transformers and numpy; fits by the condition of their optimum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from hydrometer.claims.next_tokens import (
    Contexts,
    TokenWorld,
    at_temperature,
    drawn,
    fitted,
    leading,
    token_figures,
    token_worlds,
)
from hydrometer.core.errors import FitError, InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.data.prompts import read_prompts
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.truth_spec import PromptsFile
from hydrometer.recipes import __file__ as recipes
from tiny import make_llama, make_tokenizer

V, K, LAYERS = 24, 7, (1, 2)
STREAM = Stream(0).child("next-tokens")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TokenWorld:
    folder = tmp_path_factory.mktemp("model")
    make_llama(vocab=V, seed=3).save_pretrained(folder)
    make_tokenizer(V).save_pretrained(folder)
    sizes = {"prompts": 4, "longest": 60, "max_new_tokens": 9, "positions": 4}
    return TokenWorld(source=str(folder), **sizes, worlds=2, ids=K, layers=LAYERS, directions=3)


def _after(network: torch.nn.Module, ids: torch.Tensor, layers: int) -> np.ndarray:
    """What the next layer is given, (S, D)."""
    seen: list[torch.Tensor] = []
    hook = network.model.layers[layers].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network(ids, use_cache=False)
    hook.remove()
    return seen[0][0].double().numpy()


def test_worlds_are_as_transformers_says(world: TokenWorld) -> None:
    lm = CausalLM.from_pretrained(world.source)
    shipped = PromptsFile(file=str(Path(recipes).with_name("user-instructions.jsonl")), chat=True)
    every = read_prompts(shipped, lm.tokenizer)
    prompts = every.take([i for i, p in enumerate(every.ids) if len(p) <= world.longest][: world.prompts])
    x = lm.law(prompts, max_new_tokens=world.max_new_tokens).sample(4, seed=STREAM)
    network = make_llama(vocab=V, seed=3).eval()
    found = list(token_worlds(world, STREAM))
    assert len(found) == 2
    for w, contexts in enumerate(found):
        p, states = [], {n: [] for n in LAYERS}
        for i in (2 * w, 2 * w + 1):
            n, ids = int(x.lengths[i]), torch.tensor([[*prompts.ids[i], *x.row(i).tolist()]])
            before = len(prompts.ids[i]) - 1
            at = before + np.unique(np.linspace(0, n - 1, min(n, 4)).round()).astype(int)
            with torch.no_grad():
                p.append(network(ids, use_cache=False).logits[0, at].double().softmax(-1).numpy())
            for k in LAYERS:
                s = _after(network, ids, k)[at]
                states[k].append(s / np.sqrt((s**2).mean(1, keepdims=True)))
        p = np.concatenate(p)
        ids = np.sort(np.argsort(-p.mean(0))[:K])
        assert contexts.texts == tuple(lm.tokenizer.decode([i]) for i in ids.tolist())
        np.testing.assert_allclose(np.exp(contexts.log_p), p[:, ids] / p[:, ids].sum(1, keepdims=True), atol=1e-5)
        for mine, k in zip(contexts.states, LAYERS, strict=True):
            assert mine.shape == (len(p), 4)
            assert (mine[:, -1] == 1).all()
            np.testing.assert_allclose(mine.T @ mine / len(p), np.eye(4), atol=1e-9)  # variance 1, and no mean
            s = np.concatenate(states[k])
            values, vectors = np.linalg.eigh(np.cov(s.T))
            for j in range(3):
                score = (s - s.mean(0)) @ vectors[:, -1 - j] / np.sqrt(values[-1 - j] * (len(p) - 1) / len(p))
                assert abs(score @ mine[:, j]) / len(p) == pytest.approx(1, abs=1e-3)


def _made_up(seed: int = 0, contexts: int = 12, ids: int = 5, directions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Laws and states."""
    rng = np.random.default_rng(seed)
    states = np.column_stack([rng.standard_normal((contexts, directions)), np.ones(contexts)])
    return np.asarray(log_softmax(2 * rng.standard_normal((contexts, ids)), axis=1)), states


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_a_fit_is_where_the_slope_is_zero(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydrometer.claims.next_tokens._SLOPE", 1e-9)
    log_p, states = _made_up()
    counts = drawn(log_p, 400, Stream(1))
    log_q = fitted(states, counts, penalty)
    # There the weights are the slope of the likelihood over the penalty, and give the same laws.
    weights = states.T @ (counts - counts.sum(1, keepdims=True) * np.exp(log_q)) / penalty
    np.testing.assert_allclose(np.exp(log_softmax(states @ weights, axis=1)), np.exp(log_q), atol=1e-4)


def test_a_constant_alone_learns_frequencies_and_as_many_directions_as_contexts_everything() -> None:
    log_p, _ = _made_up()
    said = np.exp(log_p) * 1e6
    alone = fitted(np.ones((len(log_p), 1)), said, 1.0)
    np.testing.assert_allclose(np.exp(alone), np.exp(log_p).mean(0)[None].repeat(len(log_p), 0), atol=1e-4)
    each = fitted(np.eye(len(log_p)), said, 1e-3)
    assert token_figures(log_p, each)["kl_truth_student"] < 1e-4


def test_a_fit_that_has_not_settled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p, states = _made_up()
    monkeypatch.setattr("hydrometer.claims.next_tokens._STEPS", 1)
    with pytest.raises(FitError, match="has not settled"):
        fitted(states, drawn(log_p, 400, Stream(1)), 0.1)


def test_rows_are_drawn_of_the_laws() -> None:
    log_p, _ = _made_up()
    n = 200_000
    counts = drawn(log_p, n, Stream(2))
    assert counts.sum() == n
    joint = np.exp(log_p) / len(log_p)
    assert (np.abs(counts / n - joint) < 5 * np.sqrt(joint / n)).all()


def test_figures_are_sums() -> None:
    (log_p, states), (log_q, _) = _made_up(0), _made_up(1)
    found = token_figures(log_p, log_q)
    kl = [sum(np.exp(a) * (a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(log_p, log_q, strict=True)]
    assert found["kl_truth_student"] == pytest.approx(np.mean(kl), rel=1e-12)
    kl = [sum(np.exp(b) * (b - a) for a, b in zip(x, y, strict=True)) for x, y in zip(log_p, log_q, strict=True)]
    assert found["kl_student_truth"] == pytest.approx(np.mean(kl), rel=1e-12)
    assert found["recall"] == pytest.approx(np.mean([np.exp(a) @ b for a, b in zip(log_p, log_q, strict=True)]))
    cold = at_temperature(log_p, 0.5)
    np.testing.assert_allclose(np.exp(cold), np.exp(log_p) ** 2 / (np.exp(log_p) ** 2).sum(1, keepdims=True))
    assert leading(states, 1).tolist() == states[:, [0, 2]].tolist()
    assert leading(states, 9).tolist() == states.tolist()


def test_what_makes_no_sense_is_refused_in_a_line(world: TokenWorld) -> None:
    with pytest.raises(InputError, match="a world has a prompt or more of its own; got 4; lower worlds"):
        next(token_worlds(world.model_copy(update={"worlds": 5}), STREAM))
    with pytest.raises(SpecError, match=r"states are after 0 to 3 layers; got \[9\]"):
        next(token_worlds(world.model_copy(update={"layers": (9,)}), STREAM))


def test_contexts_are_one_draw(world: TokenWorld) -> None:
    a, b, other = (next(token_worlds(world, s)) for s in (STREAM, STREAM, Stream(1)))
    assert isinstance(a, Contexts)
    np.testing.assert_array_equal(a.log_p, b.log_p)
    assert a.log_p.shape != other.log_p.shape or not np.array_equal(a.log_p, other.log_p)
