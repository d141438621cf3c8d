"""How much of what a prompt and the tokens before tell a model of sequences has learnt.

The least that such a law can know is how often each token comes. The law that draws every token, the end among them, by
its frequency f in the truth's rows, whatever the prompt and the tokens before, is further from the truth by

    H(f) - H(p*)        nats per token,  H(f) = -sum_v f(v) log f(v),

than the truth itself, and no law without context is nearer. That is what there is to learn; of it a law q has learnt

    share  =  1 - KL(p* || q) / (H(f) - H(p*)),        KL per token:

1 at the truth, 0 where it knows no more than frequencies, negative below. It needs no vocabulary and no length. A
model that is shown to have learnt less than a half has hardly learnt; the half is a convention. Models that are
selective on purpose lose recall, and are not measured by it. Not to be confused with distance from uniform draws, log
V: a model learns frequencies in its first steps.

Of a model that gives some rows probability zero KL is infinite, for these rows alone; how much it has learnt is told
by the others, so that its share is counted as if it knew these rows as the truth does, and is at most that. Of texts
in the place of a truth H(p*) is not known, and so no share.

Shapes: N rows, V tokens that occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.findings import HARDLY_LEARNT, Finding, warning
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import ratio_estimate
from hydrometer.models.rows.sequences import Sequences

__all__ = ["LEAST_LEARNT", "Learnable", "frequency_entropy", "hardly_learnt"]

LEAST_LEARNT = 0.5
_NAMED = 3


def frequency_entropy(counts: Ints) -> float:
    """Return the entropy of the law that counts were drawn from, nats: Chao and Shen (2003), eq. 7.

    Frequencies are shrunk by the share of the law that was met (Good 1953), and each is divided by its chance of having
    been met at all, so that tokens too rare for the sample count, too; the plug-in entropy leaves them out.

    Parameters
    ----------
    counts : (V,) how often each token occurs; at least one is positive.

    Examples
    --------
    >>> round(frequency_entropy(np.array([500, 500])), 3)
    0.693
    """
    seen = counts[counts > 0].astype(np.float64)
    total, once = float(seen.sum()), float((seen == 1).sum())
    coverage = 1 - min(once, total - 1) / total  # of a sample without any repetition one token is taken to repeat
    shrunk = coverage * seen / total
    met = -np.expm1(total * np.log1p(-np.minimum(shrunk, 1 - 1e-12)))
    return float(-(shrunk * np.log(shrunk) / met).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Learnable:
    """The truth's rows, and what of them there is to learn.

    Attributes
    ----------
    rows : (N) with the truth's own log-probabilities.
    by_frequency : (N,) log-probability under the frequencies of their tokens, nats.
    entropy : H(f), nats per token.
    """

    rows: Sequences
    by_frequency: Floats
    entropy: float

    @staticmethod
    def of(rows: Sequences) -> Learnable:
        """Count the tokens of some rows."""
        counts: Ints = np.bincount(rows.ids[rows.within])
        log_f = np.log(np.maximum(counts, 1) / counts.sum())
        by_frequency: Floats = np.where(rows.within, log_f[rows.ids], 0.0).sum(-1)
        return Learnable(rows, by_frequency, frequency_entropy(counts))

    def per_token(self, log_prob: Floats) -> float:
        """Mean of rows, nats per token."""
        return float(log_prob.sum() / self.rows.lengths.sum())

    @property
    def whole(self) -> float:
        """H(f) - H(p*): what there is to learn, nats per token."""
        return self.entropy + self.per_token(self.rows.log_prob)

    def over(self, log_prob: Floats, share: float) -> Estimate:
        """Return a law's recall less that of one that has learnt a share, nats per token.

        Paired by row; the error of the frequencies is, to first order, in these differences.

        Parameters
        ----------
        log_prob : (N,) of the rows under the law, nats.
        """
        least = share * self.rows.log_prob + (1 - share) * self.by_frequency
        found = ratio_estimate(log_prob - least, self.rows.lengths.astype(np.float64), "nats/token", self.rows.strata)
        if found.value is None:
            return found
        missed = self.entropy + self.per_token(self.by_frequency)  # of H(f), by frequencies in the rows themselves
        return replace(found, value=found.value + (1 - share) * missed)


def hardly_learnt(chain: str, rows: Sequences, models: Mapping[str, Floats]) -> list[Finding]:
    """Return a warning on models that are shown, at 95 %, to have learnt less than half of what there is to learn.

    Parameters
    ----------
    rows : (N) of the truth, with its own log-probabilities.
    models : (N,) log-probability of these rows under each trained model that is not selective, nats; by name. Rows of
        probability zero count as if the model knew them.
    """
    truth = Learnable.of(rows)
    known = truth.over(rows.log_prob, LEAST_LEARNT).interval()
    if known is None or known[0] <= 0:  # a truth that is not shown to use its context teaches none of it
        return []
    counted = {name: np.where(np.isneginf(x), rows.log_prob, x) for name, x in models.items()}
    ends = {name: truth.over(x, LEAST_LEARNT).interval() for name, x in counted.items()}
    low = [name for name, interval in ends.items() if interval is not None and interval[1] < 0]
    if not low:
        return []
    named = ", ".join(_named(name, truth, counted[name], int(np.isneginf(models[name]).sum())) for name in low[:_NAMED])
    named += f" and {len(low) - _NAMED} more" if len(low) > _NAMED else ""
    what = f"{len(low)} of {len(models)} trained models have learnt less than half of what prompt and context tell: "
    what += f"{named}; a law that knows how often each token comes, and nothing else, is at {truth.whole:.3g}"
    why = "such models are of little use, and how they differ, or what distilling changes, says nothing of trained ones"
    fix = "train longer (data, num_train_epochs), or start from a trained model, init: {source: PATH}"
    return [replace(warning(HARDLY_LEARNT, what, why, fix), chain=chain)]


def _named(name: str, truth: Learnable, counted: Floats, unsaid: int) -> str:
    """Word a model's share; at most that where rows that it cannot say are counted as known."""
    kl = truth.per_token(truth.rows.log_prob - counted)
    share = 1 - kl / truth.whole
    if unsaid:
        return f"{name} at most {share:.0%} (KL(p*||q) is infinite: {unsaid} of {len(counted)} rows it cannot say)"
    return f"{name} {share:.0%} (KL(p*||q) {kl:.3g} nats a token)"
