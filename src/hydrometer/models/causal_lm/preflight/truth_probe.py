"""A small probe of the truth: a few answers, drawn and scored as in the run, and findings from them.

Shapes: N rows of the probe, T its longest answer.

The probe answers up to 32 prompts, evenly spaced, from its own stream; its rows are not used in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, mean_variance
from hydrometer.core.watching import doing
from hydrometer.models.base import Precision
from hydrometer.models.causal_lm.data.answer_text import prompt_ends
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.rows.sequences import Sequences

__all__ = ["Probe", "examine_probe", "small_law", "take_probe"]


_BROKEN = "not-finite"
_ROWS, _FEWEST = 32, 8
_TOKENS = 1536  # drawn at most in one arithmetic
_SHOWS = 1e-3  # nats a token by which float32 sampler and scorer may differ
_WRONG = 0.1
_DRIFT = 0.02  # nats a token that rows drawn for training may lie off the truth
_NEVER = 1e-6
_SURE = 0.05  # nats of an answer that hardly varies
_HARDLY, _OFTEN = 0.05, 0.5  # shares of answers that stop
_TOLD_APART = 0.25  # of the truth's entropy


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Drawn and scored rows.

    Attributes
    ----------
    law : the probe's law in the judging arithmetic.
    x : (N) rows of it.
    scored : (N, T) nats, the scorer's log-probability of every drawn token.
    entropy : (N, T) nats, of the next-token law at every step.
    stop_log_prob : (N,) nats, of any stop token in place of the last one, or None where some row stopped.
    drift : (N,) nats, recorded minus float32 log-probability of rows drawn as training rows are, and their lengths; or
        None where these are drawn in float32.
    bias : (N,) nats, judging minus float32 log-probability of `x`, or None where judging is float32.
    """

    law: CausalLaw
    x: Sequences
    scored: Floats
    entropy: Floats
    stop_log_prob: Floats | None
    drift: tuple[Floats, NDArray[np.int64]] | None
    bias: Floats | None


def take_probe(open_law: Callable[[Precision], CausalLaw], chain: CausalLMChain) -> Probe:
    """Draw and score the probe. `open_law`: opens the truth's law."""
    stream = Stream(0, ("doctor",))
    # The judging arithmetic last: the truth is then open for the run's first stage, which draws from it.
    trained = None if chain.draw_dtype == "float32" else small_law(open_law(chain.draw_dtype))
    drawn = None if trained is None else trained.sample(trained.block_rows, seed=stream.child("train"))
    exact = None if chain.judge_dtype == "float32" else small_law(open_law("float32"))
    law = small_law(open_law(chain.judge_dtype))
    x = law.sample(law.block_rows, seed=stream.child("judge"))
    steps = law.score_steps(x, entropy=True)
    reference = law if exact is None else exact
    return Probe(
        law,
        x,
        steps.selected,
        np.zeros_like(steps.selected) if steps.entropy is None else steps.entropy,
        None if x.stopped.any() or not law.stop_ids else _stop_log_prob(law, x),
        None if drawn is None else (drawn.log_prob - reference.log_prob(drawn), drawn.lengths),
        None if exact is None else steps.selected.sum(-1) - exact.log_prob(x),
    )


def small_law(law: CausalLaw) -> CausalLaw:
    """Return the law over some prompts, in blocks of few rows, cut where the probe's tokens end."""
    n = len(law.prompts.ids)
    chosen = [i * n // _ROWS for i in range(_ROWS)] if n > _ROWS else list(range(n))
    longest = min(law.max_new_tokens, _TOKENS // _FEWEST)
    rows = max(_FEWEST, min(_ROWS, _TOKENS // longest))
    prompts = law.prompts.take(chosen)
    doing("drawing and scoring a few rows")
    return replace(law, prompts=prompts, max_new_tokens=longest, block_rows=rows)


def _stop_log_prob(law: CausalLaw, x: Sequences) -> Floats:
    """Log-probability of ending, any stop token, where each row's last token was drawn."""
    last = (np.arange(len(x)), x.lengths - 1)
    total = np.full(len(x), -np.inf)
    for stop in law.stop_ids:
        ids = x.ids.copy()
        ids[last] = stop
        with np.errstate(invalid="ignore"):  # a broken network's NaN is found out by the caller
            total = np.logaddexp(total, law.score_steps(replace(x, ids=ids)).selected[last])
    return total


def examine_probe(probe: Probe, chain: CausalLMChain) -> list[Finding]:
    """Return the probe's findings."""
    longest, role = chain.truth.max_new_tokens, chain.truth.model_role
    sampler = list(_sampler(probe, role))
    if any(f.code == _BROKEN for f in sampler):
        return sampler  # the other figures would be meaningless
    return [
        *sampler,
        *_ends(probe, longest, role),
        *_round_trip(probe),
        *_certain(probe, longest),
        *_dtypes(probe, chain),
        *_resolution(probe, chain.data.evaluate, role),
    ]


def _sampler(p: Probe, role: str) -> Iterator[Finding]:
    """Compare recorded with scored log-probabilities, token by token."""
    within, recorded = p.x.within, p.x.token_log_prob
    if not np.isfinite(p.scored[within]).all() or not np.isfinite(p.x.log_prob).all():
        yield fatal(
            _BROKEN,
            f"a drawn token has no finite log-probability under the {role} that drew it",
            "the network gives NaN or infinite logits, and every figure would be one too",
            "check the weights; if they overflow in bfloat16, draw and judge in float32",
        )
        return
    gap = 0.0 if recorded is None else float(np.abs(recorded - p.scored)[within].max())
    exact = p.bias is None
    what = f"recorded and scored log-probabilities of a token differ by up to {gap:.2g} nats"
    why = "sampler and scorer are not the same law, so entropies and divergences mix two of them"
    if exact and gap > _WRONG:
        fix = "report it, with the model's name: the network's cached and whole passes disagree"
        yield fatal("sampler-off-scorer", what, why, fix)
        return
    if gap > (_SHOWS if exact else _WRONG):
        fix = "see recorded_minus_scored of every cell" if exact else "judge in float32"
        yield warning("sampler-off-scorer", what, why, fix)


def _ends(p: Probe, max_new_tokens: int, role: str) -> Iterator[Finding]:
    """Check how many answers stop, and whether they can."""
    n, longest = len(p.x), p.law.max_new_tokens
    if not p.law.stop_ids:
        return  # said without a probe
    stopped = int(p.x.stopped.sum())
    if p.stop_log_prob is not None and float(np.exp(p.stop_log_prob).mean()) < _NEVER:
        yield warning(
            "stop-unreachable",
            f"after {longest} tokens the {role} gives its stop tokens a probability of "
            f"{float(np.exp(p.stop_log_prob).mean()):.1g} on average, and none of {n} answers stopped",
            "answers run on to max_new_tokens, and every student learns to do so",
            "name the tokens that end this model's answers in truth.stop, or use its chat template",
        )
        return
    share = f"{stopped} of {n} answers of a probe stop within {longest} tokens"
    if longest < max_new_tokens:
        if stopped > _HARDLY * n:
            return
        why = f"whether they stop within max_new_tokens, {max_new_tokens}, is not known"
        yield note("stop-not-seen", share, why, f"look at eos_rate of the {role} after the run")
        return
    if stopped <= _HARDLY * n:
        yield warning(
            "stop-not-trained",
            share,
            "students hardly ever see a stop, so whether they learn to end is not measured, and what is judged is "
            "beginnings of answers",
            "raise max_new_tokens, or ask for shorter answers",
        )
        return
    if stopped < _OFTEN * n:
        yield warning(
            "truncated",
            share,
            "figures are exact for answers cut there, but most are cut: length, repetition and eos_rate are "
            "those of beginnings",
            "raise max_new_tokens, or ask for shorter answers",
        )


def _round_trip(p: Probe) -> Iterator[Finding]:
    """Count answers whose ids change after decoding and encoding."""
    ends, n = prompt_ends(p.law.prompts, p.law.lm.tokenizer), len(p.x)
    changed = 0
    for i in range(n):
        end, ids = ends[int(p.x.prompt_index[i])], tuple(int(t) for t in p.x.row(i))
        changed += end.encode(end.decode(ids, special=True), special=True).ids != ids
    if changed:
        yield note(
            "retokenisation",
            f"{changed} of {n} answers of a probe are other token ids once they have been text",
            "nothing here, where rows keep their ids; who trains on their text learns another segmentation, whose "
            "log-probability under the truth is lower, and loses stops that text does not show",
            "train on token ids",
        )


def _certain(p: Probe, max_new_tokens: int) -> Iterator[Finding]:
    """Find prompts whose answers hardly vary: the mean sum of the steps' entropies is the answer's entropy."""
    total = np.where(p.x.within, p.entropy, 0.0).sum(-1)
    if p.law.max_new_tokens < max_new_tokens:
        total = np.where(p.x.stopped, total, np.inf)  # what comes after the probe's cut may vary
    asked = np.unique(p.x.prompt_index)
    sure = [int(j) for j in asked if float(total[p.x.prompt_index == j].mean()) < _SURE]
    if not sure:
        return
    shown = p.law.prompts.texts[sure[0]][:60] or "the begin-of-sequence token"
    yield warning(
        "deterministic-prompt",
        f"{len(sure)} of {len(asked)} prompts of the probe have one answer, for example {shown!r}",
        "no selectivity can sharpen an answer that does not vary: such prompts dilute every difference",
        "leave them out, or ask for something open",
    )


def _dtypes(p: Probe, chain: CausalLMChain) -> Iterator[Finding]:
    """Measure the effect of bfloat16 on training rows and on figures."""
    role = chain.truth.model_role
    if p.drift is not None:
        rows, lengths = p.drift
        per_token = float(rows.sum() / lengths.sum())
        error = float(np.sqrt(mean_variance(rows, None))) * len(rows) / float(lengths.sum())
        what = (
            f"training rows are drawn in {chain.draw_dtype}: {per_token:.2g} nats a token off the float32 "
            f"{role} (standard error {error:.1g})"
        )
        why = f"this is KL(drawn law || {role}) a token, what even a perfect fit to these rows keeps"
        fix = "set draw_dtype: float32 where this is not small beside the effects you look for"
        off = per_token - 2 * error > _DRIFT
        yield warning("draw-dtype", what, why, fix) if off else note("draw-dtype", what, why, fix)
    if p.bias is not None:
        bias = mean_estimate(p.bias, "nats", p.x.strata)
        yield warning(
            "judge-dtype",
            f"models are judged in {chain.judge_dtype}; the {role}'s log-probability is off by {_pm(bias)} nats an "
            "answer",
            "figures are those of rounded networks; their bias is estimated on 64 rows of every cell and not taken off",
            "set judge_dtype: float32",
        )


def _resolution(p: Probe, rows: int, role: str) -> Iterator[Finding]:
    """Estimate the smallest difference that the planned evaluation rows can resolve."""
    if p.law.max_new_tokens < 2 or len(p.x) < 2:
        return
    entropy = -float(p.scored.sum(-1).mean())
    error = float(np.sqrt(mean_variance(p.scored.sum(-1), p.x.strata) * len(p.x) / rows))
    # Two independent means of such rows, found at 5 % with a chance of 80 %: 1.96 + 0.84 standard errors.
    shown = 2.8 * float(np.sqrt(2)) * error
    if not shown > _TOLD_APART * entropy:
        return
    yield warning(
        "coarse",
        f"{rows} evaluation rows show differences of precision of {shown:.2g} nats an answer or more, and the "
        f"{role}'s entropy is {entropy:.2g}",
        "smaller differences will mostly be undecided",
        f"set data.evaluate to {_at_least(rows, shown, entropy)} or more",
    )


def _at_least(rows: int, shown: float, entropy: float) -> int:
    wanted = _TOLD_APART * entropy
    return int(np.ceil(rows * (shown / wanted) ** 2)) if wanted > 0 else 10 * rows


def _pm(e: Estimate) -> str:
    value, se = e.value or 0.0, e.se or 0.0
    return f"{value:.2g} ± {se:.1g}"
