"""Is what an accelerator gives right? The contract, laws by enumeration, fits against the processor's, kills.

Each check takes a device's name and an empty folder, and returns what was measured; it raises AssertionError where that
is out of bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrometer.benchmarks.random_models import TINY, random_lm
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.losses import TeacherRows, linear_cross_entropy, linear_divergence
from hydrometer.models.causal_lm.training.trainer import fit
from hydrometer.models.families import families
from hydrometer.models.objectives import WEIGHTS, Divergence
from hydrometer.testing import CHECKS as CONTRACT
from hydrometer.testing import ContractCase

__all__ = ["CHECKS", "DeviceCheck"]

DeviceCheck = Callable[[str, Path], str]

_SETTINGS = (None, Selectivity(temperature=0.6), Selectivity(top_p=0.9), Selectivity(top_k=3))
_PROMPTS = ["t3 t4", "t5", "t6 t7 t8"]
_A_TOKEN = 1e-4  # nats by which two float32 computations of a token's log-probability may differ


def _law(lm: CausalLM, **options: Any) -> CausalLaw:
    chosen: dict[str, Any] = {"max_new_tokens": 12, "block_rows": 64} | options
    return lm.law(_PROMPTS, **chosen)


def contract(device: str, folder: Path) -> str:
    """What every family promises (`hydrometer.testing`), of language models on the device."""
    lm = random_lm(TINY, device, vocab_size=24)
    lm.save(folder / "truth")
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.003, "bf16": False}
    chain = {
        "family": "causal_lm",
        "truth": {"source": str(folder / "truth"), "max_new_tokens": 6, "prompts": None},
        "teacher": {"init": {"layers_of": "truth", "layers": [0, 2]}, "training": training},
        "student": {"init": {"layers_of": "above", "layers": [0]}, "training": training},
        "data": {"train": 32, "validate": 16, "distill": 32, "evaluate": 48},
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.6}],
        "block_rows": 64,
        "draw_dtype": "float32",
        "device": device,
    }
    family = families()["causal_lm"]
    neutral, cold = Selectivity(temperature=1.0), Selectivity(temperature=0.5, top_p=0.9)
    law = _law(lm, max_new_tokens=5)
    case = ContractCase(family, law, neutral, cold, family.chain_spec.model_validate(chain))
    for check in CONTRACT:
        (own := folder / check.__name__).mkdir()
        check(case, own)
    return f"{len(CONTRACT)} promises hold"


def drawn_is_scored(device: str, folder: Path) -> str:
    """A draw's recorded log-probabilities are what the scorer finds, and what the processor finds."""
    gap = {"the scorer": 0.0, "the processor": 0.0}
    lm, plain = random_lm(TINY, device), random_lm(TINY, "cpu")
    for s in _SETTINGS:
        law = _law(lm, selectivity=s)
        x = law.sample(192, seed=1)
        assert x.token_log_prob is not None
        assert x.near_edge is not None
        sure = x.near_edge == 0
        assert sure.mean() > 0.9
        for name, other in (("the scorer", law), ("the processor", _law(plain, selectivity=s))):
            off = np.abs(score_steps(other, x).selected - x.token_log_prob)[sure].max()
            assert off < _A_TOKEN, (name, s, off)
            gap[name] = max(gap[name], float(off))
    return ", ".join(f"{off:.1e} nats a token from {name} at most" for name, off in gap.items())


def bfloat16_is_near(device: str, folder: Path) -> str:
    """The same in bfloat16, which rounds each logit."""
    law = _law(random_lm(TINY, device, torch.bfloat16))
    x = law.sample(192, seed=1)
    assert x.token_log_prob is not None
    off = np.abs(score_steps(law, x).selected - x.token_log_prob)
    mean = float(off.sum() / x.lengths.sum())
    assert mean < 0.05, mean
    return f"{mean:.1e} nats a token on average, {off.max():.1e} at most"


def laws_by_enumeration(device: str, folder: Path) -> str:
    """Draws against every answer's probability, enumerated in float64 on the processor: chi-square."""
    from scipy.stats import chisquare

    worst, n, longest, v = 1.0, 40_000, 3, 6
    lm, plain = random_lm(TINY, device, vocab_size=v), random_lm(TINY, "cpu", vocab_size=v)
    for s in _SETTINGS:
        law, other = (m.law("t3", max_new_tokens=longest, selectivity=s, block_rows=4000) for m in (lm, plain))
        x = law.sample(n, seed=2)
        drawn = np.bincount(_places(x.ids, x.lengths, v), minlength=(v + 1) ** longest)
        rows = _answers(v, longest, stop=set(law.stop_ids))
        ids = np.array([[*r, *([0] * (longest - len(r)))] for r in rows])
        lengths = np.array([len(r) for r in rows])
        every = replace(
            x.take(np.zeros(len(rows), np.int64)),
            ids=ids, lengths=lengths, stopped=np.isin(ids[np.arange(len(ids)), lengths - 1], law.stop_ids),
            log_prob=np.zeros(len(rows)), token_log_prob=None, token_log_prob_unselected=None, near_edge=None,
        )  # fmt: skip
        p = np.exp(other.log_prob(every))
        assert abs(p.sum() - 1) < 1e-4, p.sum()
        seen = drawn[_places(ids, lengths, v)]
        assert seen.sum() == n
        common = p * n >= 5
        observed, expected = np.append(seen[common], seen[~common].sum()), np.append(p[common], p[~common].sum()) * n
        kept = expected > 0
        assert not observed[~kept].any()
        worst = min(worst, float(chisquare(observed[kept], expected[kept] * n / expected.sum()).pvalue))
    assert worst > 1e-4, worst
    return f"least of {len(_SETTINGS)} p-values {worst:.2g}, {n:,} rows each"


def _answers(v: int, longest: int, stop: set[int]) -> list[tuple[int, ...]]:
    whole = (r for k in range(1, longest + 1) for r in itertools.product(range(v), repeat=k))
    return [r for r in whole if not stop & set(r[:-1]) and (len(r) == longest or r[-1] in stop)]


def _places(ids: Any, lengths: Any, v: int) -> Any:
    """A number for each answer."""
    at = np.where(np.arange(ids.shape[1]) < lengths[:, None], ids + 1, 0)
    return (at * (v + 1) ** np.arange(ids.shape[1])).sum(1)


def a_block_repeats(device: str, folder: Path) -> str:
    """The same stream gives the same bits, whichever rows are asked for."""
    for dtype in (torch.float32, torch.bfloat16):
        law = _law(random_lm(TINY, device, dtype))
        a, b, tail = law.sample(128, seed=3), law.sample(128, seed=3), law.sample(64, seed=3, start=64)
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.log_prob, b.log_prob)
        assert np.array_equal(a.log_prob[64:], tail.log_prob)
    return "equal, bit for bit, in float32 and bfloat16"


def _request(device: str, loss: str, partial: Path | None = None) -> FitRequest:
    rows = _law(random_lm(TINY, "cpu"))
    law = _law(random_lm(TINY, device))
    training = Training(
        num_train_epochs=3, per_device_train_batch_size=16, learning_rate=0.01, bf16=False,
        save_steps=None if partial is None else 2,
    )  # fmt: skip
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0, 1)), training=training)
    data, held_out = rows.sample(48, seed=3), rows.sample(32, seed=4)
    teacher = None if loss == "mle" else law
    return FitRequest(data, held_out, law, teacher, level, "teacher", loss, Stream(7), partial=partial)


def fits_are_the_processors(device: str, folder: Path) -> str:
    """Fits in float32 end where the processor's end: held-out losses after each of three epochs."""
    off: dict[str, float] = {}
    for loss in ("mle", "kl_student_teacher", "jsd(weight=0.5)"):
        runs: list[Any] = [fit(_request(d, loss)).info["validation"] for d in (device, "cpu")]
        here, there = ([e["nats_per_token"] for e in run] for run in runs)
        off[loss] = float(np.abs(np.array(here) - np.array(there)).max())
        assert off[loss] < 2e-3, (loss, here, there)
    return ", ".join(f"{loss} {gap:.1e} nats a token" for loss, gap in off.items())


def losses_are_dense_ones(device: str, folder: Path) -> str:
    """Losses and their gradients by states, in float32, are those of whole logits in float64 on the processor."""
    g, n, v, width = torch.Generator().manual_seed(0), 300, 5000, 32
    states, theirs = (torch.randn(n, width, generator=g) for _ in range(2))
    heads = [torch.randn(v, width, generator=g) / 4 for _ in range(2)]
    ids = torch.randint(v, (n,), generator=g)
    worst = 0.0
    for loss in (None, *(Divergence(kind, w or 0.5) for kind, w in WEIGHTS.items())):
        found: list[torch.Tensor] = []
        for where, dtype in ((device, torch.float32), ("cpu", torch.float64)):
            h, w, other, matrix = (x.detach().to(where, dtype) for x in (states, heads[0], theirs, heads[1]))
            h = h.detach().requires_grad_()
            over: dict[str, Any] = {"n_items": n, "vocab_size": v - 3}
            at = ids.to(where).clamp(max=v - 4)
            if loss is None:
                value = linear_cross_entropy(h, w, None, at, **over)
            else:
                value = linear_divergence(h, (w, None), at, (TeacherRows(other, matrix), loss), **over)
            value.backward()
            assert h.grad is not None
            found += [value.detach().cpu().double(), h.grad.cpu().double()]
        off = float((found[1] - found[3]).abs().max() / found[3].abs().max())
        assert max(off, float((found[0] / found[2] - 1).abs())) < 1e-4, (loss, off, found[0], found[2])
        worst = max(worst, off)
    return f"gradients of {1 + len(WEIGHTS)} losses are off by {worst:.1e} of the largest"


def a_killed_fit_goes_on(device: str, folder: Path) -> str:
    """A fit that ends in its sixth step goes on from its fourth, to the same weights."""

    def killed(done: float, total: float, what: str) -> None:
        if what == "steps" and done == 6:
            raise _KilledError

    request = _request(device, "mle", folder / "partial")
    try:
        fit(replace(request, tick=killed))
        raise AssertionError("it was not killed")
    except _KilledError:
        pass
    again, whole = fit(request), fit(_request(device, "mle"))
    ours, theirs = (f.model.lm.model.state_dict() for f in (again, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours), "other weights"
    return f"from {again.info['resumed']}, equal bit for bit"


class _KilledError(FitError):
    """What a signal would be."""

    def __init__(self) -> None:
        super().__init__("killed")


CHECKS: tuple[DeviceCheck, ...] = (
    contract,
    drawn_is_scored,
    bfloat16_is_near,
    laws_by_enumeration,
    a_block_repeats,
    losses_are_dense_ones,
    fits_are_the_processors,
    a_killed_fit_goes_on,
)
