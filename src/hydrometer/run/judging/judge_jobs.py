"""The work behind a judgement of models that exist: blocks to draw, rows to score, each one artifact.

    model --draw--> rows --score under every law that is asked--> figures

Jobs are named by what they depend on, as the stages of a run are; what is there already is not made again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.pretrained.existing import Existing, open_law
from hydrometer.run.execution.failures import reason_of
from hydrometer.run.graph.missing import missing_of
from hydrometer.run.graph.outcome import Monitor, Outcome
from hydrometer.stages.judge_models import VERSIONS, Scored, draw_block, load_rows, load_scored, score_ids, score_texts
from hydrometer.store.artifacts import ArtifactStore, content_key

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.retokenize import Texts
    from hydrometer.models.rows.sequences import Sequences

__all__ = ["Drawn", "Jobs", "LawName", "TextRows", "Work", "run_jobs"]

_LAWS_KEPT = 2


@dataclass(frozen=True, slots=True, eq=False)
class LawName:
    """A law before its weights are opened.

    Attributes
    ----------
    key : of everything that the law depends on, the arithmetic included; the decoding is not among it.
    """

    model: Existing
    label: str
    prompts: Prompts
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    block_rows: int
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The first n rows of a law's stream, as blocks."""

    law: LawName
    decoding: Selectivity | None
    n: int
    prompts_are: PromptsAre
    blocks: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """Held-out texts, named by their content."""

    texts: Texts
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    law: LawName
    decoding: Selectivity | None
    stream: Stream
    start: int
    n: int
    inputs: tuple[str, ...] = ()
    stage: ClassVar[str] = "draw"


@dataclass(frozen=True, slots=True, eq=False)
class _Score:
    law: LawName
    decoding: Selectivity | None
    rows: Drawn | TextRows
    as_texts: bool
    inputs: tuple[str, ...]
    stage: ClassVar[str] = "score"


@dataclass(slots=True)
class Jobs:
    """All jobs by key, inputs first."""

    jobs: dict[str, _Draw | _Score] = field(default_factory=dict[str, "_Draw | _Score"])

    def draw(self, law: LawName, decoding: Selectivity | None, root: Stream, n: int, are: PromptsAre) -> Drawn:
        """Ask for rows; their stream is the law's own, whatever else is judged beside."""
        at = None if decoding is None else decoding.to_json()
        stream = root.child("evaluate", "judged", content_key([law.key, at]))
        base = {"stage": "draw", "version": VERSIONS["draw"], "law": law.key, "decoding": at,
                "stream": [stream.seed, *stream.path], "block": law.block_rows}  # fmt: skip
        blocks: list[str] = []
        for start in range(0, n, law.block_rows):
            rows = min(law.block_rows, n - start)
            cut = {} if rows == law.block_rows else {"rows": rows}
            key = content_key({**base, "start": start, **cut})
            self.jobs.setdefault(key, _Draw(law, decoding, stream, start, rows))
            blocks.append(key)
        last = {"last": blocks[-1]} if n % law.block_rows else {}
        return Drawn(law, decoding, n, are, tuple(blocks), content_key({**base, "n": n, **last}))

    def score(
        self, law: LawName, decoding: Selectivity | None, rows: Drawn | TextRows, *, as_texts: bool = False
    ) -> str:
        """Ask for one law's scores of rows; returns the job's key."""
        parts: dict[str, object] = {
            "stage": "score", "version": VERSIONS["score_texts" if as_texts else "score"], "law": law.key,
            "rows": rows.key, "as_texts": as_texts, "decoding": None if decoding is None else decoding.to_json(),
        }  # fmt: skip
        if as_texts:  # prompts of equal ids may be of different text, behind which answers are decoded and encoded
            parts["behind"] = [law.prompts.written, rows.law.prompts.written if isinstance(rows, Drawn) else None]
        key = content_key(parts)
        inputs = rows.blocks if isinstance(rows, Drawn) else ()
        self.jobs.setdefault(key, _Score(law, decoding, rows, as_texts, inputs))
        return key


class Work:
    """Does jobs, and reads what they left.

    Parameters
    ----------
    store : where artifacts are.
    dtype, device : the arithmetic.
    """

    def __init__(self, store: ArtifactStore, dtype: Literal["float32", "bfloat16"], device: str) -> None:
        self.store, self.device = store, device
        self.dtype: Literal["float32", "bfloat16"] = dtype
        self._laws: OrderedDict[str, CausalLaw] = OrderedDict()

    def rows(self, drawn: Drawn) -> Sequences:
        """Open drawn rows."""
        return load_rows([self.store.path("draw", k) for k in drawn.blocks], drawn.n, drawn.prompts_are)

    def scored(self, key: str) -> Scored:
        """Open scores."""
        return load_scored(self.store.path("score", key))

    def law(self, name: LawName, decoding: Selectivity | None) -> CausalLaw:
        """Open a law; the few last used are kept, and room is made before another is opened."""
        if name.key in self._laws:
            self._laws.move_to_end(name.key)
        else:
            while len(self._laws) >= _LAWS_KEPT:
                self._laws.popitem(last=False)
            self._laws[name.key] = open_law(
                name.model, name.prompts, name.stop_ids, name.max_new_tokens, name.block_rows, dtype=self.dtype,
                device=self.device,
            )  # fmt: skip
        law = self._laws[name.key]
        return law if decoding is None else law.select(decoding)

    def do(self, job: _Draw | _Score, folder: Path) -> dict[str, object]:
        """Do one job into `folder`."""
        law = self.law(job.law, job.decoding)
        if isinstance(job, _Draw):
            return draw_block(law, job.stream, job.start, job.n, folder)
        if isinstance(job.rows, TextRows):
            return score_texts(law, job.rows.texts, folder)
        if not job.as_texts:
            own = (job.rows.law.key, job.rows.decoding) == (job.law.key, job.decoding)
            return score_ids(law, self.rows(job.rows), folder, own=own)
        from hydrometer.models.causal_lm.inference.retokenize import texts_of

        writer = job.rows.law
        texts = texts_of(self.rows(job.rows), writer.prompts, writer.model.tokenizer)
        return score_texts(law, texts, folder)


def run_jobs(jobs: Jobs, work: Work, monitor: Monitor) -> Outcome:
    """Do every job whose artifact is missing; one that fails takes with it those that need it."""
    outcome = Outcome()
    missing = missing_of(jobs.jobs, work.store, unread=())
    costs = {key: _cost(job) for key, job in jobs.jobs.items()}
    outcome.reused.update(job.stage for key, job in jobs.jobs.items() if key not in missing)
    monitor.begin(sum(costs.values()), sum(c for k, c in costs.items() if k not in missing), len(missing))
    for key, job in missing.items():
        monitor.stage(_label(job), costs[key])
        reason = next((outcome.failed[i] for i in job.inputs if i in outcome.failed), None)
        if reason is None:
            try:
                with work.store.write(job.stage, key, {"inputs": list(job.inputs)}) as (folder, info):
                    info.update(work.do(job, folder))
                outcome.computed[job.stage] += 1
            except Exception as e:
                reason = reason_of(e, job.stage, work.store.root)
        if reason is not None:
            outcome.failed[key] = reason
        monitor.done(costs[key], reason)
    return outcome


def _cost(job: _Draw | _Score) -> float:
    size = job.law.model.size
    if isinstance(job, _Draw):
        return 2.0 * size * job.n * job.law.max_new_tokens
    if isinstance(job.rows, TextRows):
        return 0.5 * size * float(np.sum(job.rows.texts.n_bytes))
    return 2.0 * size * job.rows.n * job.rows.law.max_new_tokens


def _label(job: _Draw | _Score) -> str:
    at = "" if job.decoding is None else f" at {job.decoding.label}"
    if isinstance(job, _Draw):
        return f"draw from {job.law.label}{at}, rows {job.start}-{job.start + job.n - 1}"
    whose = "the held-out text" if isinstance(job.rows, TextRows) else f"the rows of {job.rows.law.label}"
    return f"score {whose} under {job.law.label}{at}" + (" as text" if job.as_texts else "")
