"""What a model knows beyond token frequencies, against laws whose figures are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.findings import FIGURE_CODES
from hydrometer.metrics.learnt import Learnable, frequency_entropy, hardly_learnt
from hydrometer.models.rows.sequences import Sequences

END = 1
PROMPTS = ((0, 3), (0, 4))


def rows_of(answers: list[list[int]], log_prob: Floats | None = None) -> Sequences:
    """Row i answers prompt i mod 2."""
    lengths = np.array([len(a) for a in answers], np.int64)
    ids: Ints = np.zeros((len(answers), int(lengths.max())), np.int64)
    for row, a in zip(ids, answers, strict=True):
        row[: len(a)] = a
    n = len(answers)
    own = np.zeros(n) if log_prob is None else log_prob
    return Sequences(PROMPTS, np.arange(n) % 2, ids, lengths, np.ones(n, np.bool_), own)


def repeats(n: int, seed: int) -> tuple[Sequences, Floats]:
    """Answers that repeat their prompt's last token with probability 0.9, say the other one else, and end."""
    asked = np.arange(n) % 2
    right = np.random.default_rng(seed).random(n) < 0.9
    said = np.where(right, asked, 1 - asked)
    log_prob = np.log(np.where(right, 0.9, 0.1))
    return rows_of([[3 + int(s), END] for s in said], log_prob), log_prob


def test_the_entropy_of_frequencies_counts_tokens_too_rare_for_the_sample() -> None:
    p = 1 / np.arange(1, 2001)
    p /= p.sum()
    true = float(-(p * np.log(p)).sum())
    rng = np.random.default_rng(5)
    counts = rng.multinomial(1500, p, size=40)
    found = np.array([frequency_entropy(c) for c in counts])
    plain = np.array([float(-(f[f > 0] * np.log(f[f > 0])).sum()) for f in counts / 1500])
    assert true - plain.mean() > 0.3  # nats: what the plug-in leaves out
    assert abs(found.mean() - true) < 0.1
    assert frequency_entropy(np.array([1, 1, 1])) > np.log(3)
    assert frequency_entropy(np.array([7, 0])) == 0.0


TOLD = 0.5 * np.log(4) + 0.5 * np.log(2) + 0.5 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1))
"""What prompt and context tell: each of two tokens has a quarter, the end a half; nats a token."""
BLIND = np.log(0.25) + np.log(0.5)


def mixed(truth: Floats, share: float) -> Floats:
    """Log-probability, nats, under what has learnt that share: on a line between both, as far as rows go."""
    return share * truth + (1 - share) * BLIND


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, -0.3])
def test_what_there_is_to_learn_and_the_share_that_is(share: float) -> None:
    rows, truth = repeats(400, seed=1)
    known = Learnable.of(rows)
    error = float(np.std(truth)) / np.sqrt(400) / 2
    assert known.whole == pytest.approx(TOLD, abs=5 * error)
    for least in (0.0, 0.5, 1.0):
        found = known.over(mixed(truth, share), least)
        assert found.unit == "nats/token"
        assert found.value is not None
        assert found.value == pytest.approx((share - least) * TOLD, abs=5 * error)


def test_a_model_that_has_learnt_half_is_seldom_called_less() -> None:
    """At 95 % two-sided, one time in forty; over eighty samples not more often than chance allows."""
    wrong = 0
    for seed in range(80):
        rows, truth = repeats(200, seed)
        ends = Learnable.of(rows).over(mixed(truth, 0.5) + np.random.default_rng(seed).normal(0, 1, 200), 0.5)
        interval = ends.interval()
        assert interval is not None
        wrong += interval[1] < 0
    assert wrong <= 80 * 0.025 + 5 * np.sqrt(80 * 0.025 * 0.975)


def test_models_that_have_hardly_learnt_are_named() -> None:
    rows, truth = repeats(200, seed=2)
    assert hardly_learnt("lm", rows, {"direct-seed0": truth, "b": mixed(truth, 0.7)}) == []
    (said,) = hardly_learnt("lm", rows, {"direct-seed0": truth, "a": mixed(truth, 0.2)})
    assert said.code in FIGURE_CODES
    assert (said.chain, said.severity) == ("lm", "warning")
    known = Learnable.of(rows)
    whole, kl = known.whole, known.per_token(truth - mixed(truth, 0.2))
    assert said.what == (
        "1 of 2 trained models have learnt less than half of what prompt and context tell: "
        f"a 20% (KL(p*||q) {kl:.3g} nats a token); "
        f"a law that knows how often each token comes, and nothing else, is at {whole:.3g}"
    )
    (more,) = hardly_learnt("lm", rows, {f"seed{i}": mixed(truth, 0.1) for i in range(5)})
    assert ") and 2 more;" in more.what
    assert hardly_learnt("lm", rows, {"cut": np.full(200, -np.inf)}) == []
    one = mixed(truth, 0.9)
    one[3] = -np.inf  # a row that it cannot say tells nothing of the others
    assert hardly_learnt("lm", rows, {"one": one}) == []
    nothing = replace(rows, log_prob=np.full(200, BLIND))
    assert hardly_learnt("lm", nothing, {"a": np.full(200, BLIND - 1.0)}) == []  # where context tells nothing


def test_a_model_that_cannot_say_some_rows_is_measured_on_the_others() -> None:
    """It has learnt at most what it has if it knew these rows as the truth does; its KL is infinite."""
    rows, truth = repeats(400, seed=3)
    few, filled = mixed(truth, 0.2), mixed(truth, 0.2)
    few[:5], filled[:5] = -np.inf, truth[:5]
    known = Learnable.of(rows)
    share = 1 - known.per_token(truth - filled) / known.whole
    assert share > 1 - known.per_token(truth - mixed(truth, 0.2)) / known.whole
    (said,) = hardly_learnt("lm", rows, {"few": few, "b": truth})
    assert f": few at most {share:.0%} (KL(p*||q) is infinite: 5 of 400 rows it cannot say); a law" in said.what
    assert said.what.startswith("1 of 2 trained models have learnt less than half")
