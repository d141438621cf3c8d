"""Text figures: their errors against resampling, and against the spread of fresh samples."""

import math
from collections import Counter

import numpy as np
import pytest

import hydrometer as hm
from hydrometer.core.rng import Stream
from hydrometer.metrics.text import text_metrics
from hydrometer.models.rows.sequences import Sequences

NAMES = ("length", "eos_rate", "repetition", "distinct_1", "distinct_2", "distinct_3")


def law(order: int = 1, vocabulary: int = 6) -> hm.Markov:
    p = Stream(4).child("text").uniforms(0, (vocabulary + 1) ** order, vocabulary) ** 3
    return hm.Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=order, max_new_tokens=12)


@pytest.fixture(scope="module")
def replicated() -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of 300 samples of 80 rows, (300, figures)."""
    chain = law()
    made = [text_metrics(chain.sample(80, seed=s)) for s in range(300)]
    return tuple(np.array([[getattr(m[k], f) for k in NAMES] for m in made]) for f in ("value", "se"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_the_spread_of_fresh_samples(name: str, replicated: tuple[np.ndarray, np.ndarray]) -> None:
    """A mean's error is unbiased; the jackknife of distinct n-grams rather too large than too small (Efron, Stein)."""
    values, errors = (x[:, NAMES.index(name)] for x in replicated)
    ratio = math.sqrt((errors**2).mean()) / values.std(ddof=1)
    noise = 1 / math.sqrt(2 * values.size)  # relative standard error of a standard deviation
    above = 0.25 if name.startswith("distinct") else 0.0
    assert 1 - 4.5 * noise < ratio < 1 + 4.5 * noise + above


@pytest.mark.parametrize("name", ["length", "eos_rate", "repetition"])
def test_the_error_of_a_mean_is_the_bootstrap(name: str) -> None:
    x = law().sample(80, seed=1)
    u = Stream(9).child("bootstrap").uniforms(0, 800, 80)
    drawn = [text_metrics(x.take((row * 80).astype(np.int64)))[name].value for row in u]
    found = text_metrics(x)[name]
    assert found.se is not None
    # The bootstrap's variance is that of n, not n - 1; its own relative error is 1 / sqrt(2 * 800).
    assert np.std(drawn) * math.sqrt(80 / 79) == pytest.approx(found.se, rel=4.5 / math.sqrt(1600))


def two_prompts(n: int, seed: int) -> Sequences:
    """Rows of two prompts whose answers differ much: one id repeated 11 or 12 times, and three ids of forty."""
    u, second = Stream(seed).child("two").uniforms(0, n, 3), np.arange(n) % 2 == 1
    ids, lengths = np.ones((n, 12), np.int64), np.where(u[:, 0] < 0.5, 11, 12)
    lengths[second] = 3
    ids[second, :3] = (10 + 40 * u[second]).astype(np.int64)
    return Sequences(((1,), (2,)), np.arange(n) % 2, ids, lengths, lengths == 3, np.zeros(n))


def test_prompts_are_strata_of_the_jackknife() -> None:
    """What differs between prompts is no sampling error."""
    made = [text_metrics(two_prompts(120, s)) for s in range(200)]
    flat = [
        text_metrics(Sequences(((1,),), np.zeros(120, np.int64), x.ids, x.lengths, x.stopped, x.log_prob))
        for x in (two_prompts(120, s) for s in range(40))
    ]
    spread = np.std([m["distinct_1"].value for m in made], ddof=1)
    own, pooled = (math.sqrt(np.mean([(m["distinct_1"].se or 0) ** 2 for m in each])) for each in (made, flat))
    noise = 1 / math.sqrt(2 * 200)
    assert own / spread > 1 - 4.5 * noise  # above 1 where almost all ids were seen: few singletons make the jackknife
    assert pooled > 1.3 * own


def test_distinct_n_grams_by_hand() -> None:
    ids = np.array([[1, 2, 1, 2, 1], [2, 1, 2, 3, 0], [4, 0, 0, 0, 0]])
    x = Sequences(((0,),), np.zeros(3, int), ids, np.array([5, 4, 1]), np.ones(3, bool), np.zeros(3))
    m = text_metrics(x)
    assert m["distinct_1"].value == pytest.approx(4 / 10)
    assert m["distinct_2"].value == pytest.approx(3 / 7)  # 12 21 23
    assert m["distinct_3"].value == pytest.approx(3 / 5)  # 121 212 123
    grams = [Counter(tuple(r[i : i + 3]) for i in range(len(r) - 2)) for r in ([1, 2, 1, 2, 1], [2, 1, 2, 3], [4])]
    left = []
    for i in range(3):
        rest = sum((g for j, g in enumerate(grams) if j != i), Counter[tuple[int, ...]]())
        left.append(len(rest) / rest.total())
    assert m["distinct_3"].se == pytest.approx(math.sqrt(2 / 3 * np.square(np.array(left) - np.mean(left)).sum()))


def test_rows_without_n_grams_have_no_figure() -> None:
    x = Sequences(
        ((0,),), np.zeros(2, int), np.array([[1, 2], [3, 0]]), np.array([2, 1]), np.ones(2, bool), np.zeros(2)
    )
    m = text_metrics(x)
    assert m["distinct_2"].value == 1
    assert m["distinct_3"].value is None
