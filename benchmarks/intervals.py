"""Do intervals hold, and are control variates never worse than plain means? Every figure, on known laws (worlds).

    python benchmarks/intervals.py                    # all worlds and sizes: an hour of one core
    python benchmarks/intervals.py --worlds line cold --sizes 64 1024 --times 500
    python benchmarks/intervals.py --write            # also the tables of docs/frontiers.md

For each world and number of rows, samples are drawn repeatedly, and the library's own functions compute their figures.
Reported are the coverage of the nominal 95 % interval, and the root mean square error relative to the plain mean of the
same rows. Exact figures are by quadrature, dynamic programming or enumeration; above two dimensions they are means of
4 million rows with control variates.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydrometer as hm
import numpy as np
from hydrometer.core.statistics.controls import Controls
from hydrometer.metrics.frontiers.densities import density_metrics
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.models.rows.points import Points

SIZES = {64: 2000, 80: 2000, 200: 2000, 500: 1000, 1024: 1000, 5000: 500, 20000: 300}
LIKELIHOOD = ("precision", "recall", "entropy", "entropy_truth", "kl_student_truth", "kl_truth_student")
PER_TOKEN = tuple(f"{name}_per_token" for name in LIKELIHOOD)
DENSITY = (
    "total_variation", "prd_alpha_half", "prd_alpha_two", "divergence_area", "typicality_50", "typicality_90",
)  # fmt: skip
LOW, HIGH, MOST_RMSE = 0.94, 0.965, 1.02
DOCS = Path(__file__).resolve().parents[1] / "docs" / "frontiers.md"

Pair = tuple[Any, Any]


def mixture(weights: list[float], means: list[Any], variances: list[Any]) -> hm.Mixture:
    """Spherical where variances are numbers, else diagonal."""
    kind = "diag" if isinstance(variances[0], list) else "spherical"
    return hm.Mixture(weights, np.array(means).reshape(len(weights), -1), variances, covariance_type=kind)


def ring() -> hm.Mixture:
    """The paper's eight Gaussians."""
    means = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
    return mixture([0.125] * 8, means, [0.025] * 8)


def rare(w: float) -> Pair:
    """The paper's mixture, and two components of which one is rare."""
    return ring(), mixture([1 - w, w], [[-0.5, -1], [0.8, 0.6]], [[0.3, 0.025], [0.1, 0.2]])


def chain(order: int, seed: int, rarest: float, vocabulary: int = 6, longest: int = 8) -> hm.Markov:
    """A random chain, the last id of probability `rarest` after every context."""
    table = np.random.default_rng(seed).dirichlet(np.full(vocabulary - 1, 2.0), size=(vocabulary + 1) ** order)
    table = np.concatenate([table * (1 - rarest), np.full((len(table), 1), rarest)], axis=1)
    table[:, 0] = np.maximum(table[:, 0], 0.08)
    return hm.Markov(np.log(table / table.sum(axis=1, keepdims=True)), order=order, max_new_tokens=longest)


def tiny_lm() -> Pair:
    """Two random transformers over eight ids, answers of at most four: enumerable."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(_peers.THREADS)
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(("<bos>", "<eos>", *"abcdef"))}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>")

    def made(layers: int, seed: int) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
        )  # fmt: skip
        return hm.CausalLM(LlamaForCausalLM(config), tokenizer).law(None, max_new_tokens=4)

    return made(2, 1), made(1, 2)


WORLDS: dict[str, Callable[[], Pair]] = {
    "line": lambda: (mixture([0.6, 0.4], [-1.0, 1.5], [0.8, 0.4]), mixture([1.0], [0.2], [1.6])),
    "near": lambda: (mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.3]), mixture([0.6, 0.4], [-0.8, 1.2], [0.5, 0.4])),
    "far": lambda: (mixture([0.5, 0.5], [-4.0, -2.0], [0.3, 0.3]), mixture([0.6, 0.4], [2.0, 4.0], [0.5, 0.4])),
    "plane": lambda: (
        mixture([0.5, 0.3, 0.2], [[-1, 0], [1, 0], [0, 1.5]], [0.3] * 3),
        mixture([0.6, 0.4], [[-0.6, 0.4], [0.9, 0.3]], [[0.6, 0.7], [0.4, 0.8]]),
    ),
    "one of four": lambda: (
        mixture([0.25] * 4, [[-1, -1], [-1, 1], [1, -1], [1, 1]], [0.1] * 4), mixture([1.0], [[0, 0]], [[1.2, 1.1]])
    ),
    "cold": lambda: (
        mixture([0.5, 0.5], [[-1, 0], [1, 0]], [0.3, 0.3]), mixture([0.95, 0.05], [[-1, 0], [1, 0.2]], [0.25, 0.35])
    ),
    "paper": lambda: (ring(), mixture([1.0], [[0.0, 0.1]], [[0.7, 0.75]])),
    "space": lambda: (
        mixture([0.4, 0.3, 0.3], [[-1, 0, 0], [1, 0, 0], [0, 1.5, 0]], [0.3, 0.3, 0.4]),
        mixture([0.7, 0.3], [[-0.3, 0.2, 0], [0.9, 0.3, 0.1]], [[0.6, 0.7, 0.5], [0.4, 0.8, 0.5]]),
    ),
    "rare .05": lambda: rare(0.05),
    "rare .01": lambda: rare(0.01),
    "rare .001": lambda: rare(0.001),
    "rare .0002": lambda: rare(0.0002),
    "chains": lambda: (chain(2, 1, 0.1), chain(1, 2, 0.1)),
    "rare ids": lambda: (chain(1, 1, 0.01), chain(1, 2, 0.0005)),
    "tiny LM": tiny_lm,
}  # fmt: skip
# Where one component is rare, and n w, its rows in a sample, are too few to be met by chance.
RARE = {"rare .05": (80,), "rare .01": (300,), "rare .001": (2000,), "rare .0002": (20000,)}


@dataclass
class Count:
    """One figure in one world at one number of rows."""

    held: int = 0
    cautious: int = 0
    below_zero: int = 0
    times: int = 0
    squares: float = 0.0
    plain_squares: float = 0.0
    plain_held: int = 0

    def add(self, e: Any, exact: float) -> None:
        low, high = e.interval() or (math.nan, math.nan)
        self.times += 1
        self.held += low <= exact <= high
        self.cautious += e.caution is not None
        self.below_zero += high < 0
        self.squares += (e.value - exact) ** 2
        self.plain_squares += ((e.value if e.plain is None else e.plain) - exact) ** 2

    @property
    def coverage(self) -> float:
        return self.held / self.times

    @property
    def rmse(self) -> float:
        return math.sqrt(self.squares / self.plain_squares) if self.plain_squares > 0 else 1.0


def exact_figures(name: str, p: Any, q: Any) -> dict[str, float]:
    if isinstance(p, hm.Markov) or (isinstance(p, hm.Mixture) and p.n_features < 3):
        return {k: e.value for k, e in hm.judge_exact(p, q).items() if e.value is not None}
    if isinstance(p, hm.Mixture):
        known: dict[str, list[float]] = {}
        for seed in range(4):
            for k, e in hm.judge(p, q, n=1_000_000, seed=1000 + seed).items():
                if k in LIKELIHOOD + DENSITY:
                    known.setdefault(k, []).append(float(e.value))
        return {k: float(np.mean(v)) for k, v in known.items()}
    return _enumerated(p, q)


def _enumerated(p: Any, q: Any) -> dict[str, float]:
    """All strings of the tiny language model."""
    import itertools

    strings = [s for m in range(1, 5) for s in itertools.product(range(8), repeat=m)]
    strings = [s for s in strings if 1 not in s[:-1] and (s[-1] == 1 or len(s) == 4)]
    ids = np.zeros((len(strings), 4), np.int64)
    for i, s in enumerate(strings):
        ids[i, : len(s)] = s
    lengths = np.array([len(s) for s in strings])
    rows = replace(
        p.sample(1, seed=0), prompt_index=np.zeros(len(strings), np.int64), ids=ids, lengths=lengths,
        stopped=np.array([s[-1] == 1 for s in strings]), log_prob=np.zeros(len(strings)), token_log_prob=None,
        token_log_prob_unselected=None, near_edge=None,
    )  # fmt: skip
    log_p, log_q = p.log_prob(rows), q.log_prob(rows)
    mass_p, mass_q = np.exp(log_p), np.exp(log_q)
    out = {
        "precision": mass_q @ log_p, "recall": mass_p @ log_q, "entropy": -(mass_q @ log_q),
        "entropy_truth": -(mass_p @ log_p), "kl_student_truth": mass_q @ (log_q - log_p),
        "kl_truth_student": mass_p @ (log_p - log_q),
    }  # fmt: skip
    length = {"recall": mass_p @ lengths, "entropy_truth": mass_p @ lengths, "kl_truth_student": mass_p @ lengths}
    out |= {f"{k}_per_token": v / length.get(k, mass_q @ lengths) for k, v in list(out.items())}
    from hydrometer.metrics.frontiers.outcomes import Outcomes, outcome_metrics

    none = np.empty(0)
    found = outcome_metrics(Outcomes(mass_p, mass_q, log_p, none, none))
    return {k: float(v) for k, v in out.items()} | {k: float(e.value or 0.0) for k, e in found.items()}


def _part(x: Any, rows: slice) -> Any:
    return Points(x.x[rows], x.log_prob[rows]) if isinstance(x, Points) else x.take(rows)


def count(world: str, n: int, times: int, seed: int) -> dict[str, Count]:
    p, q = WORLDS[world]()
    known = exact_figures(world, p, q)
    root = hm.Stream(seed)
    out: dict[str, Count] = {}
    at_once = max(1, min(times, 2_000_000 // n))
    for first in range(0, times, at_once):
        here = min(at_once, times - first)
        x = p.sample(here * n, seed=root.child("coverage", "truth"), start=first * n)
        y = q.sample(here * n, seed=root.child("coverage", "law"), start=first * n)
        of_p, of_q = p.score_beside(x, q), q.score_beside(y, p)
        for r in range(here):
            rows = slice(r * n, (r + 1) * n)
            columns = (of_p.own[rows], of_p.other[rows], of_q.other[rows], of_q.own[rows])
            controls = (Controls.of(o.controls[rows], None, o.reference) for o in (of_p, of_q))
            s = Scores(_part(x, rows), _part(y, rows), *columns, *controls)
            found = likelihood_metrics(s)
            found |= density_metrics(s, found)
            for name in (*LIKELIHOOD, *PER_TOKEN, *DENSITY):
                if name in known and name in found:
                    out.setdefault(name, Count()).add(found[name], known[name])
    return out


def table(found: list[tuple[str, int, dict[str, Count]]], names: tuple[str, ...], cell: Callable[[Count], str]) -> str:
    head = "| world | n | " + " | ".join(f"`{n}`" for n in names) + " |"
    lines = [head, "|---|---|" + "---|" * len(names)]
    for world, n, counts in found:
        lines.append(f"| {world} | {n} | " + " | ".join(cell(counts[k]) if k in counts else "" for k in names) + " |")
    return "\n".join(lines)


def both(c: Count) -> str:
    return f"{100 * c.coverage:.1f} / {c.rmse:.3f}"


def outside(found: list[tuple[str, int, dict[str, Count]]]) -> list[str]:
    """Figures outside the bounds by more than two and a half binomial standard errors."""
    out: list[str] = []
    for world, n, counts in found:
        for name, c in counts.items():
            slack = 2.5 * math.sqrt(0.95 * 0.05 / c.times)
            if not LOW - slack <= c.coverage <= HIGH + slack or c.rmse > MOST_RMSE:
                said = f"{world}, n = {n}, {name}: {both(c)}, cautious {100 * c.cautious / c.times:.0f} %"
                out.append(said)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--sizes", nargs="*", type=int, default=None)
    parser.add_argument("--times", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found: list[tuple[str, int, dict[str, Count]]] = []
    for world in given.worlds:
        for n in sorted({*(given.sizes or SIZES), *(() if given.sizes else RARE.get(world, ()))}):
            if world == "tiny LM" and n > 5000:
                continue
            times = given.times or SIZES.get(n, 500)
            counts = count(world, n, times, seed=7)
            found.append((world, n, counts))
            print(table(found[-1:], tuple(counts), both).splitlines()[-1], flush=True)
    print(*outside(found), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps([[w, n, {k: vars(c) for k, c in x.items()}] for w, n, x in found]))
    if given.write:
        text = DOCS.read_text()
        for mark, names in (("likelihood", LIKELIHOOD), ("density", DENSITY)):
            shown = table(found, names, both if mark == "likelihood" else lambda c: f"{100 * c.coverage:.1f}")
            place = rf"(<!-- coverage: {mark} -->\n).*?(\n<!-- end -->)"
            text = re.sub(place, lambda m, s=shown: m[1] + s + m[2], text, flags=re.DOTALL)
        DOCS.write_text(text)


if __name__ == "__main__":
    main()
