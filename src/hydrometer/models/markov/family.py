"""The Markov family: specification to laws, fits and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.distillation import MLE, Objective, Prefixes, distillations_of
from hydrometer.core.errors import StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.base import FitRequest, Fitted, Footprint, Law, Precision, Samples
from hydrometer.models.cheap import CheapFamily, Stage, against
from hydrometer.models.markov.doctor import examine
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.markov.spec import MarkovChain, MarkovLevel
from hydrometer.models.objectives import divergence_of
from hydrometer.models.rows.sequences import Sequences, texts_exhibit

__all__ = ["MARKOV", "MarkovFamily"]

_SECONDS_AN_ENTRY = 2e-6  # of an exact optimum
_ROUNDS = 25  # until a student on its own prefixes comes to rest


class MarkovFamily(CheapFamily):
    """n-gram chains."""

    name: str = "markov"
    chain_spec: type[ChainSpec] = MarkovChain
    law_type: type[Markov] = Markov
    rows_type: type[Sequences] = Sequences
    libraries: tuple[str, ...] = ("numpy", "scipy")
    seconds: Mapping[Stage, float] = {"draw": 5e-6, "fit": 0.0015, "judge": 0.03}

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result."""
        return examine(_chain(chain))

    def footprint(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> Footprint:
        """Rows are held in memory, eight bytes a token; exact optima hold five numbers of each id of each prefix."""
        table = 40 * _entries(_chain(chain)) if stage == "fit" and any(_exact_share(chain, role)) else 0
        return Footprint(memory_least=8 * rows * _chain(chain).truth.max_new_tokens + table)

    def cost(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> float:
        """Seconds on one core, roughly: of a fit the mean over the level's students, by counts and by exact optima."""
        seconds = super().cost(chain, stage, role, rows)
        if stage != "fit":
            return seconds
        once, at_rest = _exact_share(chain, role)
        return seconds + (once + _ROUNDS * at_rest) * _SECONDS_AN_ENTRY * _entries(_chain(chain))

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """The table by content, wherever its text is."""
        law = _chain(chain).truth.law()
        digest = hashlib.sha256(np.ascontiguousarray(law.log_table).tobytes()).hexdigest()
        return {"table": digest, "order": law.order, "max_new_tokens": law.max_new_tokens}

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit by counts, or to the exact optimum of an objective on the expected prefixes of as many rows."""
        level, truth = of_type(MarkovLevel, request.level), of_type(Markov, request.truth)
        objective = divergence_of(Objective.from_json(request.loss))
        if objective is not None:
            undropped = teacher = of_type(Markov, request.teacher)
            if (s := request.selectivity) is not None:
                teacher = teacher.select(s)
                by_token = s.sequence_power is None and s.tilt is None
                undropped = undropped.select(Selectivity(temperature=s.temperature or 1)) if by_token else teacher
            prefixes = Prefixes.from_json(request.prefix_source)
            source = {"truth": truth, "teacher": teacher, "student": None}[prefixes.name]
            smoothing = level.smoothing / len(request.data)
            best = fit_objective(teacher, source, objective, level.order, smoothing, prefixes.own, undropped)
            return Fitted(best.model, best.info)
        fitted = fit_markov(
            of_type(Sequences, request.data),
            level.order,
            smoothing=level.smoothing,
            vocabulary=truth.vocabulary,
            max_new_tokens=truth.max_new_tokens,
        )
        return Fitted(fitted.model, fitted.info)

    def save_law(self, law: Law, folder: Path) -> None:
        """Write the table."""
        m = of_type(Markov, law)
        np.savez(folder / "markov.npz", log_table=m.log_table, shape=np.array([m.order, m.max_new_tokens]))

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> Markov:
        """Open what `save_law` wrote."""
        try:
            with open_arrays(folder / "markov.npz") as archive:
                order, longest = (int(v) for v in archive["shape"])
                return Markov(archive["log_table"], order=order, max_new_tokens=longest)
        except (OSError, ValueError, KeyError) as e:
            raise StoreError(f"no chain can be read: {e}", got=folder.name) from None

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Return the first rows as text, with their log-probabilities."""
        x = of_type(Sequences, samples)
        prompts, answers = self.texts(chain, law, x.take(slice(0, len(log_prob_truth))))
        return texts_exhibit(x, log_prob_truth, prompts.__getitem__, answers.__getitem__)

    def texts(self, chain: ChainSpec, law: Law, x: Sequences) -> tuple[list[str], list[str]]:
        """Return prompts, which are empty, and rows in the truth's symbols, the end of sequence left out."""
        symbols = _chain(chain).truth.symbols()
        return [""] * len(x), ["".join(symbols[v - 1] for v in x.row(i).tolist() if v > 0) for i in range(len(x))]

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth."""
        truth = _chain(chain).truth
        law = truth.law()
        source = "drawn" if truth.text is None else f"counted in {Path(truth.text).name}"
        said = f"chain of order {law.order} over {law.vocabulary} ids, at most {law.max_new_tokens} long, {source}"
        return said + against(chain)


def _entries(chain: MarkovChain) -> int:
    """Return how many ids of how many prefixes an exact optimum weighs, at most."""
    above = chain.truth if chain.teacher == "truth" else chain.teacher
    longest = max(above.order, chain.student.order, *(a.order for a in chain.assistants))
    v = chain.truth.law().vocabulary
    by_step = any(s.sequence_power is not None or s.tilt is not None for s in chain.selectivity)
    by_step |= any("to_go" in x for x in chain.loss)
    steps = chain.truth.max_new_tokens if by_step else 1
    return steps * (v + 1) ** longest * v


def _exact_share(chain: ChainSpec, role: str) -> tuple[float, float]:
    """Return the share of a level's fits that are exact optima: on given prefixes, and on the student's own."""
    fits = [d for d in distillations_of(chain) if role != "teacher"]
    exact = [d.prefixes.own > 0 for d in fits if d.objective != MLE]
    return exact.count(False) / (len(fits) + 1), exact.count(True) / (len(fits) + 1)


def _chain(chain: ChainSpec) -> MarkovChain:
    return of_type(MarkovChain, chain)


MARKOV = MarkovFamily()
