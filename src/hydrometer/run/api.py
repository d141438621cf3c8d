"""Run an experiment from specification to results: the verb `run` of library and command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hydrometer.core.errors import InputError
from hydrometer.core.findings import FIGURE_CODES, Finding
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.core.watching import doing
from hydrometer.metrics.plausibility import implausible
from hydrometer.models.base import Samples
from hydrometer.models.capabilities import AsksParts, GivenModels
from hydrometer.models.families import RunSpec
from hydrometer.run.advice.advise import answer
from hydrometer.run.cost.recorded import keep_seconds
from hydrometer.run.execution.executors import ExecutorName, executor_of
from hydrometer.run.execution.recorder import Recorder
from hydrometer.run.graph.adopted import read_adopted
from hydrometer.run.graph.inputs import check_inputs, check_places
from hydrometer.run.graph.join import entry_of, keep_prompts, merge_with, refuse_other_name, with_prompts
from hydrometer.run.graph.outcome import Monitor, Outcome, SilentMonitor
from hydrometer.run.graph.plan import ChainPlan, Plan, plan_run
from hydrometer.run.graph.recipes import load_spec
from hydrometer.run.graph.reopen import training_rows
from hydrometer.run.preflight.diagnosis import diagnose, keep
from hydrometer.run.results.engine_records import crossed_records, engine_records, law_records
from hydrometer.run.results.map_records import MapBooks
from hydrometer.run.results.model_card import cards
from hydrometer.run.results.named_models import link_models
from hydrometer.run.results.provenance import versions
from hydrometer.run.results.reported import Reported, check_report, dashboards_of
from hydrometer.run.results.run_result import RunResult
from hydrometer.run.results.sofar import SoFar, part_of
from hydrometer.run.results.truths import keep_truths, truth_files
from hydrometer.run.results.unlearnt import unlearnt
from hydrometer.run.results.user_scores import read_scores
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.cells import Cell
from hydrometer.stages.given_nodes import JudgeGivenNode
from hydrometer.stages.judge import from_teacher
from hydrometer.stages.judge_files import load_adjusted, load_law_on_truth, load_metrics, load_text_on_truth
from hydrometer.stages.judge_given import load_exhibit, text_rows_of
from hydrometer.stages.picture import load_picture, without_picture
from hydrometer.stages.statistics.chain_groups import ChainFacts
from hydrometer.stages.statistics.groups import Judged, TruthRows
from hydrometer.stages.statistics.summary import compare_chain, load_released
from hydrometer.store.artifacts import ArtifactStore, content_key
from hydrometer.store.migrate import SCHEMA
from hydrometer.store.records import RunFolder, load_results, plain
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import place_of

__all__ = [
    "RunResult",
    "results_of",
    "run",
]


def run(
    source: str | Path | RunSpec,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
    monitor: Monitor | None = None,
    until: Literal["draw"] | None = None,
    executor: ExecutorName = "local",
    address: str | None = None,
) -> RunResult:
    """Run an experiment, or go on with one, or extend one by selectivities or seeds.

    Parameters
    ----------
    source : a recipe's name, a YAML file, or a specification.
    out : the run's folder, or a URL (``s3://bucket/prefix``; docs, Remote stores); ``runs/NAME`` by default.
    overrides : ``a.b.c=VALUE``, as ``--set``.
    cache : folder or URL for artifacts, where several runs share them; inside the run's folder by default.
    monitor : watches progress.
    until : "draw" makes every model's training rows, and what they are drawn from, and nothing else: no student below
        the last of them is fitted, nothing is judged, and the results hold no cells. A later run goes on from there.
    executor : "local" makes one stage after the other in this process; "ray" many at once on a Ray cluster.
    address : of that cluster, ``host:port`` or "auto"; None starts one on this machine, which ends with the run.

    Raises
    ------
    InputError : anything wrong with what was given, or a fatal finding of its examination (`doctor`). Nothing has been
        changed then.

    Examples
    --------
    >>> import tempfile, hydrometer as hm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = hm.run("paper-mixture", out=folder, overrides=["seeds=2", "chains.mixture.data.evaluate=200"])
    >>> result.failed_cells, result.outcome.computed["fit"]  # per seed: teacher, direct, six distilled
    ([], 16)
    """
    make = executor_of(executor, address)
    if until not in (None, "draw"):
        raise InputError('until is "draw" or None', got=until)
    spec = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    folder = RunFolder(out if out is not None else Path("runs") / spec.name)
    check_places(folder.place, cache)
    check_report(spec, folder)
    refuse_other_name(folder, spec)
    check_inputs(spec.chains.values())
    spec = with_prompts(spec, folder)
    wanted = entry_of(spec)
    whole = merge_with(folder, spec, wanted)  # refuses another experiment before anything is made
    adopted, artifacts = read_adopted(folder), place_of(cache) if cache is not None else folder.artifacts
    plan = plan_run(whole, adopted)
    watch = monitor or SilentMonitor()
    diagnosis = diagnose(whole, plan, artifacts, spec)
    diagnosis.refuse()
    watch.found(diagnosis.findings)
    folder.create()
    with folder.hold(), ExitStack() as held:
        now = merge_with(folder, spec, wanted), read_adopted(folder)
        if now != (whole, adopted):  # another run may have extended the folder meanwhile
            plan = plan_run(*now)
            diagnosis = diagnose(now[0], plan, artifacts, spec)
            diagnosis.refuse()
        store = open_store(artifacts)
        store.sweep(shared=cache is not None)  # a shared cache may hold another run's work in progress
        folder.sweep()
        keep_prompts(folder, plan)  # before the specification that they are asked by
        folder.accept(wanted)
        folder.remember_base(spec.base or Path.cwd())
        folder.push()  # before any artifact: what has artifacts is a run
        watch = held.enter_context(Recorder(folder, watch))
        plan.dashboards = dashboards_of(spec, folder, plan)
        log = held.enter_context(plan.dashboards.opened("run"))
        keep(store, diagnosis)
        if until == "draw":
            outcome = make(training_rows(plan), store, watch)
            keep_seconds(plan, store, outcome, watch)
            return RunResult(folder.place, {"schema": SCHEMA, "name": spec.name, "cells": []}, outcome)
        findings = [f.to_json() for f in diagnosis.lasting]
        keep_truths(folder, plan)

        def write(outcome: Outcome) -> None:
            if part_of(plan, outcome).chains:
                folder.write_results(results_of(spec.name, folder, plan, store, outcome, findings))

        so_far = SoFar(plan, store, watch, write)
        outcome = make(plan, store, watch, Reported(plan, store, log, so_far) if spec.report_to else so_far)
        keep_seconds(plan, store, outcome, watch)
        doing("gathering the figures")
        write(outcome)
    return RunResult(folder.place, load_results(folder.root), outcome)


def results_of(
    name: str,
    folder: RunFolder,
    plan: Plan,
    store: ArtifactStore,
    outcome: Outcome,
    findings: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """Write records and exhibits; return the content of results.json, of what is judged where stages are left."""
    # Those of figures are found anew: `findings` may come from earlier results.
    lasting = [f for f in findings if f.get("code") not in FIGURE_CODES]
    books = _Books(folder, plan, store, outcome)
    missing: dict[str, list[str]] = {}
    for cell in plan.cells:
        if cell.id not in books.by_id:
            missing.setdefault(cell.chain, []).append(cell.id)
    plan = books.plan
    maps = {name: MapBooks(chain, store, outcome) for name, chain in plan.chains.items() if chain.maps}
    records = [books.record(cell) for cell in plan.cells if cell.chain not in maps]
    records += [record for book in maps.values() for record in book.records]
    for record in records:
        folder.put("records", str(record["id"]), record)
    openable = {name for name, chain in plan.chains.items() if isinstance(chain.context.family, GivenModels)}
    accepted = {content_key(plain(a)): a for a in folder.accepted()}
    link_models(folder, [r for r in records if r["chain"] in openable], store, cards(plan, accepted))
    contrasts: list[object] = []
    groups: dict[str, object] = {}
    chains: dict[str, dict[str, object]] = {}
    for chain_name, chain in plan.chains.items():
        bench = ArtifactLoader(store)
        if chain_name in maps:
            found = maps[chain_name].comparison()
        else:
            found = compare_chain(
                books.facts(chain), chain.cells, lambda c, b=bench: books.judged(c, b), books.released
            )
        contrasts += [asdict(c) for c in found.contrasts]
        groups |= found.groups
        chains[chain_name] = (
            found.chain
            | _parts(chain)
            | engine_records(plan, chain_name, store)
            | crossed_records(plan, chain_name, store)
            | law_records(plan, chain_name, store)
        )
    for cell in plan.cells:
        shown = books.exhibit(cell)
        if shown is not None:
            folder.put("exhibits", cell.id, shown)
    for chain_name, chain in plan.chains.items():
        if chain.picture is not None:
            folder.put("exhibits", f"{chain_name}.picture", books.picture(chain.picture))
    for book in maps.values():
        for cell_id, shown in book.exhibits().items():
            folder.put("exhibits", cell_id, shown)
    by_id = {str(r["id"]): r for r in records}
    for chain_name, chain in plan.chains.items():
        found_advice = answer(folder, name, plan, chain, store, by_id, missing.get(chain_name, ()))
        chains[chain_name] |= {} if found_advice is None else {"advice": found_advice}
    return {
        "schema": SCHEMA,
        "name": name,
        "specs": [a["spec"] for a in accepted.values()],
        "spec_hashes": list(accepted),
        "versions": versions(),
        **({"partial": missing} if missing else {}),
        "cells": records,
        "contrasts": contrasts,
        "summary": {"groups": groups, "chains": chains, "findings": [*lasting, *books.implausible()]},
    }


def _parts(chain: ChainPlan) -> dict[str, object]:
    family = chain.context.family
    if not isinstance(family, AsksParts) or not (counted := family.count_parts(chain.context.spec)):
        return {}
    return {"prompts": dict(counted)}


class _Books:
    def __init__(self, folder: RunFolder, plan: Plan, store: ArtifactStore, outcome: Outcome) -> None:
        self.truths = {name: truth_files(folder, chain) for name, chain in plan.chains.items()}
        self.whole, self.plan = plan, part_of(plan, outcome)
        self.store, self.outcome, self.scores = store, outcome, read_scores(folder)
        self.by_id = {c.id: c for c in self.plan.cells}
        self._truth_rows: dict[str, TruthRows] = {}
        self._metrics: dict[str, dict[str, Estimate]] = {}
        self._clustered: dict[str, bool] = {}

    def facts(self, chain: ChainPlan) -> ChainFacts:
        spec, family = chain.context.spec, chain.context.family
        truth = next((c for c in chain.cells if c.role == "truth"), chain.cells[0])
        metrics = self.metrics(truth)
        planned = self.whole.chains[chain.context.name].cells
        return ChainFacts(
            chain.context.name,
            family.name,
            family.describe_truth(spec),
            metrics is not None and "length" in metrics,
            spec.controls,
            max(c.level for c in planned),
            len(chain.cells) == len(planned),
            self.reference(chain),
            any(isinstance(n, JudgeGivenNode) and n.as_texts for n in self.plan.judges_of(chain.cells)),
        )

    def reference(self, chain: ChainPlan) -> str | None:
        """What precision is measured under where the truth is texts: a cell's role."""
        nodes = (n for n in self.plan.judges_of(chain.cells) if isinstance(n, JudgeGivenNode) and n.held_out)
        node = next(nodes, None)
        return None if node is None else "teacher" if node.truth.role == "teacher" else "reference"

    def metrics(self, cell: Cell) -> dict[str, Estimate] | None:
        """A cell's figures, its teacher's entropy among them; None where it failed."""
        if cell.judge in self.outcome.failed:
            return None
        if cell.id not in self._metrics:
            found = load_metrics(self.store.path("judge", cell.judge))
            teacher = self.by_id.get(cell.teacher_cell or "")
            if teacher is not None and teacher.judge not in self.outcome.failed:
                found |= from_teacher(load_metrics(self.store.path("judge", teacher.judge)), found)
            node = self.plan.judge_of(cell)
            if cell.id in self.scores and node is not None:
                found |= self.scores[cell.id].figures(node.law_rows.key)
            self._metrics[cell.id] = found
        return self._metrics[cell.id]

    def implausible(self) -> list[dict[str, str | None]]:
        """Findings about the figures of every chain whose cells are judged one by one."""
        found: list[Finding] = []
        for name, chain in self.plan.chains.items():
            if not chain.maps:
                cells = {c.called(): m for c in chain.cells if (m := self.metrics(c)) is not None}
                found += [*implausible(name, cells), *unlearnt(chain, self.plan, self.store, self.outcome)]
        return [f.to_json() for f in found]

    def record(self, cell: Cell) -> dict[str, object]:
        metrics = self.metrics(cell)
        node = self.plan.judge_of(cell)
        stages = (("judge", cell.judge),) if node is None else node.behind()
        seconds = 0.0
        if metrics is not None:
            seconds = sum(float(self.store.meta(s, k)["seconds"]) for s, k in stages)
        figures = None if metrics is None else {k: v.to_json() for k, v in metrics.items()}
        made = {} if node is None else node.artifacts() | {"truth": self.truths[cell.chain]}
        record = cell.record(figures, self.outcome.failed.get(cell.judge), seconds, made)
        if node is not None and node.law.kind == "fit" and cell.decoding is None:
            record["name"] = cell.model_name(with_chain=len(self.whole.chains) > 1)
            record |= self.fitted(node.law.key)
        return record if cell.on_training is None else record | {"on_training_prompts": self.again(cell.on_training)}

    def fitted(self, key: str) -> dict[str, object]:
        """What a fit took, where its family counts tokens; nothing of what was adopted."""
        meta = self.store.meta("fit", key) if self.store.has("fit", key) else {}
        info = meta.get("info", {})
        if "tokens" not in info or "steps" not in info:
            return {}
        told = {k: info[k] for k in ("steps", "tokens", "tokens_drawn", "chosen_by") if k in info}
        return {"fit": {"tokens_drawn": 0, **told, "seconds": round(float(meta["seconds"]), 3)}}

    def again(self, cell: Cell) -> dict[str, object]:
        """What results.json holds of a cell judged on prompts of training."""
        metrics = self.metrics(cell)
        figures = {} if metrics is None else {k: v.to_json() for k, v in metrics.items()}
        return {
            "metrics": figures,
            "reason": self.outcome.failed.get(cell.judge),
            "artifact": f"judge-{cell.judge}",
        }

    def judged(self, cell: Cell, bench: ArtifactLoader) -> Judged | None:
        """A cell for comparisons; its rows are read when they are first needed."""
        metrics = self.metrics(cell)
        if metrics is None:
            return None
        folder = self.store.path("judge", cell.judge)
        return Judged(
            metrics,
            lambda: load_law_on_truth(folder),
            lambda: self.truth_rows(cell, bench),
            lambda: load_adjusted(folder),
            lambda: self.clustered(cell, bench),
            lambda: load_text_on_truth(folder),
        )

    def clustered(self, cell: Cell, bench: ArtifactLoader) -> bool:
        """Whether the prompts of a cell's chain are a sample; its first rows say it."""
        node = self.plan.judge_of(cell)
        if node is None or not node.law_rows.blocks:
            return False
        if cell.chain not in self._clustered:
            self._clustered[cell.chain] = isinstance(bench.head(node.context, node.law_rows, 1).strata, Clusters)
        return self._clustered[cell.chain]

    def truth_rows(self, cell: Cell, bench: ArtifactLoader) -> TruthRows:
        """The truth's rows a cell was judged on."""
        node = self.plan.judge_of(cell)
        if node is None:
            raise TypeError(f"{cell.id} is not judged by a judge stage")
        if isinstance(node, JudgeGivenNode) and node.held_out:
            return text_rows_of(node, self.store.path("judge", node.key))
        key = node.truth_rows.key
        if key not in self._truth_rows:
            rows: Samples = bench.outline(node.context, node.truth_rows)
            if node.truth_judge is None and (node.law.kind == "fit" or node.decoding is not None):
                family, chain = node.context.family, node.context.spec
                own = bench.judged_against(node, family.precision(chain, "judge")).log_prob(rows)
            else:
                own = load_law_on_truth(self.store.path("judge", node.truth_judge or node.key))
            all_kept = isinstance(node, JudgeGivenNode)  # of the teacher there is no column of ids to count
            kept = own.size if all_kept else load_law_on_truth(self.store.path("judge", node.key)).size
            lengths = None if rows.lengths is None else rows.lengths[:kept].astype(np.float64)
            strata = None if rows.strata is None else rows.strata[:kept]
            self._truth_rows[key] = TruthRows(own[:kept], lengths, strata, len(rows))
        return self._truth_rows[key]

    def released(self, cell: Cell) -> dict[str, Any] | None:
        """The figures as released that belong to a cell."""
        if cell.released is None or cell.released in self.outcome.failed:
            return None
        return load_released(self.store.path("released", cell.released))

    def exhibit(self, cell: Cell) -> dict[str, Any] | None:
        node = self.plan.judge_of(cell)
        if isinstance(node, JudgeGivenNode):
            failed = node.key in self.outcome.failed
            return None if failed else load_exhibit(self.store.path("judge", node.key))
        if cell.show is None or cell.show in self.outcome.failed:
            return None
        return artifact_json(self.store.path("show", cell.show) / "exhibit.json", dict, type(None))

    def picture(self, key: str) -> dict[str, Any]:
        """A chain's picture, or why there is none."""
        reason = self.outcome.failed.get(key)
        return load_picture(self.store.path("picture", key)) if reason is None else without_picture(reason)
