"""The Markov family: specification to laws, fits and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arrays import open_arrays
from hydrometer.core.errors import StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import FitRequest, Fitted, Footprint, Law, Level, Precision, Samples, chain_levels
from hydrometer.models.markov.doctor import examine
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.markov.spec import MarkovChain, MarkovLevel
from hydrometer.models.sequences import Sequences, load_sequences, save_sequences, texts_exhibit

__all__ = ["MARKOV", "MarkovFamily"]

Floats = NDArray[np.float64]


class MarkovFamily:
    """n-gram chains. Draws are cheap: they are made again where needed instead of being stored."""

    name: str = "markov"
    chain_spec: type[ChainSpec] = MarkovChain
    keeps_draws: bool = False

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Teacher, unless it is the truth; assistants; student."""
        c = _chain(chain)
        return chain_levels(c.teacher, c.assistants, c.student)

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream; counting needs no held-out rows."""
        d = _chain(chain).data
        return {"train": d.train, "validate": 0, "distill": d.distill, "evaluate": d.evaluate}

    def check(self, chain: ChainSpec) -> None:
        """Nothing is left to check: the specification builds the truth when it is read."""

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result."""
        return examine(_chain(chain))

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Rows are held in memory, eight bytes a token."""
        return Footprint(memory_least=8 * rows * _chain(chain).truth.max_new_tokens)

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions of what computes."""
        import scipy

        return {"files": 1, "numpy": np.__version__, "scipy": scipy.__version__}

    def block_rows(self, chain: ChainSpec) -> int:
        """Draws are not stored; one block holds any draw."""
        return 1 << 20

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """Always float64."""
        return "float64"

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """The table, by content: wherever its text lies."""
        law = _chain(chain).truth.law()
        digest = hashlib.sha256(np.ascontiguousarray(law.log_table).tobytes()).hexdigest()
        return {"table": digest, "order": law.order, "max_new_tokens": law.max_new_tokens}

    def truth(self, chain: ChainSpec, precision: Precision) -> Markov:
        """Make the truth."""
        return _chain(chain).truth.law()

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit by counts."""
        level, truth = cast("MarkovLevel", request.level), cast("Markov", request.truth)
        fitted = fit_markov(
            cast("Sequences", request.data), level.order, smoothing=level.smoothing, vocabulary=truth.vocabulary,
            max_new_tokens=truth.max_new_tokens,
        )  # fmt: skip
        return Fitted(fitted.model, fitted.info)

    def save_law(self, law: Law, folder: Path) -> None:
        """Write the table."""
        m = cast("Markov", law)
        np.savez(folder / "markov.npz", log_table=m.log_table, shape=np.array([m.order, m.max_new_tokens]))

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> Markov:
        """Open what `save_law` wrote."""
        try:
            with open_arrays(folder / "markov.npz") as archive:
                order, longest = (int(v) for v in archive["shape"])
                return Markov(archive["log_table"], order=order, max_new_tokens=longest)
        except (OSError, ValueError, KeyError) as e:
            raise StoreError(f"no chain can be read: {e}", got=folder.name) from None

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write rows as Parquet."""
        save_sequences(cast("Sequences", samples), folder / "rows.parquet")

    def load_samples(self, folders: list[Path], n: int) -> Sequences:
        """Open the first n rows of blocks."""
        return self.take(Sequences.concatenate([load_sequences(f / "rows.parquet") for f in folders]), n)

    def take(self, samples: Samples, n: int) -> Sequences:
        """Return the first n rows."""
        return cast("Sequences", samples).take(slice(0, n))

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Return the first rows as text, with their log-probabilities."""
        x = cast("Sequences", samples)
        prompts, answers = self.texts(chain, law, self.take(x, len(log_prob_truth)))
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
        return f"chain of order {law.order} over {law.vocabulary} ids, at most {law.max_new_tokens} long, {source}"

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Seconds on one core, roughly."""
        return {"draw": 5e-6, "fit": 0.0015, "judge": 0.03}[stage]


def _chain(chain: ChainSpec) -> MarkovChain:
    return cast("MarkovChain", chain)


MARKOV = MarkovFamily()
