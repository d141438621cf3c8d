"""The verb `scores`: add a user's scores of a cell's evaluation rows, or a benchmark's results, to a run's figures."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, InputError, brief
from hydrometer.core.io.locking import InUseError
from hydrometer.core.io.yaml_io import is_object, nearest, read_plain
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, share_estimate
from hydrometer.core.statistics.sampling_design import Strata
from hydrometer.core.watching import doing
from hydrometer.models.base import Samples
from hydrometer.models.causal_lm.data.text_dataset import read_answers
from hydrometer.run.api import RunResult, results_of
from hydrometer.run.exchange.exporting import COLUMNS
from hydrometer.run.exchange.lm_eval import is_finite, is_number, read_lm_eval
from hydrometer.run.exchange.truth_scores import TruthAnswers, of_answers, one_column, own_scores, under
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.graph.plan import Plan
from hydrometer.run.graph.reopen import Opened, look, reopen, require_run
from hydrometer.run.results.user_scores import CellScores, keep_scores
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import JudgeNode
from hydrometer.store.records import load_results
from hydrometer.store.storage_uri import Url

__all__ = ["ScoresResult", "add_scores"]

# pyarrow has no type information; what leaves this module is annotated.
pa: Any = pyarrow
csv: Any = pyarrow.csv
pq: Any = pyarrow.parquet

MAX_FILE_BYTES = 2**29
MAX_ROWS = 10_000_000
MAX_COLUMNS = 1000
MAX_VALUES = 100_000_000
MAX_LINE_BYTES = 10_000_000
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class ScoresResult:
    """What `add_scores` returns: the folder's results, and the added figures by cell id and metric.

    `waiting` : a run is in progress in the folder; it writes the figures with its next results.
    """

    run: RunResult
    added: Mapping[str, Mapping[str, Estimate]]
    waiting: bool = False


def add_scores(
    folder: str | Path | Url,
    *,
    file: str | Path,
    cell: str | None = None,
    columns: Sequence[str] | None = None,
    truth: str | None = None,
    cache: str | Path | None = None,
) -> ScoresResult:
    """Add externally computed figures to a run's cells.

    Either one score for each of a cell's evaluation rows, as `export` wrote them: columns `row`, `cell` (unless `cell`
    is given), and the scores, which become metrics ``user_<column>``; their means and errors are estimated as those of
    the run's own figures. Or a results file of lm-evaluation-harness, of the one model that `cell` names, whose values
    and standard errors become ``lm_eval_<task>_<metric>``. A metric of the same name is replaced.

    With `truth` the scores are log-probabilities of the rows under a model that the run cannot open: they become
    precision and KL under it (`truth_scores`). A JSONL file without `row` holds answers that this model drew itself,
    with their prompts: the run's models score them here, which gives recall and the other KL.

    Parameters
    ----------
    folder : of the run.
    file : ``.parquet``, ``.jsonl`` or ``.csv`` of scores, or ``.json`` of lm-evaluation-harness.
    cell : the cell's id.
    columns : names of the score columns; by default all numeric ones that an export does not have.
    truth : what the model is called whose log-probabilities these are: nats, summed over a row's answer tokens.
    cache : where artifacts are, if elsewhere.

    Raises
    ------
    InputError : an unreadable file, no such cell, a score that is not finite, an unknown, duplicate or unscored row.
        Nothing is changed then.
    """
    path = Path(file)
    home = require_run(folder)
    raw = _read(path)
    source = f"{path.name} sha256:{hashlib.sha256(raw).hexdigest()}"
    if truth is not None:
        columns = [one_column(truth, columns)]
    given = read_lm_eval(raw, path.name, source) if path.suffix == ".json" else _given(raw, path, cell, columns, truth)
    if isinstance(given, CellScores):
        if truth is not None:
            fix = "give .parquet, .jsonl or .csv"
            raise InputError("--truth is for log-probabilities by row", got=path.name, fix=fix)
        if columns:
            raise InputError("columns are named of files of rows", got=list(columns), fix="leave out --column")
        _named(cell)
    with ExitStack() as held:
        waiting = False
        try:
            held.enter_context(home.hold())
        except InUseError:  # scores are separate files, read whenever results are written
            waiting = True
            load_results(home.root)
        opened = reopen(home, cache)
        outcome = Outcome()
        look(opened, opened.plan, outcome)
        if isinstance(given, CellScores):
            found = {_cell(opened, opened.plan, cell).id: given}
        elif isinstance(given, TruthAnswers):
            found = _answers(opened, given, source, truth or "", cell)
        else:
            found = _rows(opened, opened.plan, given, source, truth)
        keep_scores(opened.folder, found)
        if not waiting:
            opened.folder.create()
            results = results_of(opened.spec.name, opened.folder, opened.plan, opened.store, outcome, opened.findings())
            opened.folder.write_results(results)
    run = RunResult(opened.folder.place, load_results(opened.folder.root), outcome)
    return ScoresResult(run, {name: dict(s.metrics) for name, s in found.items()}, waiting)


def _read(path: Path) -> bytes:
    if "\0" in str(path) or path.suffix not in (".parquet", ".jsonl", ".csv", ".json"):
        fix = "give .parquet, .jsonl or .csv of scores, or lm-evaluation-harness's .json"
        raise InputError("scores cannot be read from a file of this type", got=str(path), fix=fix)
    try:
        raw = read_plain(path, MAX_FILE_BYTES)
    except OSError as e:
        raise InputError(
            f"the file of scores cannot be read: {e.strerror or e}", got=str(path), fix="check it"
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise InputError("the file of scores is too large", got=str(path), fix="keep cell, row and the scores")
    return raw


def _named(cell: str | None) -> str:
    if cell is None:
        raise InputError(
            "the cell of these scores is not named", fix="name the cell with --cell; ids are in results.csv"
        )
    return cell


def _cell(opened: Opened, plan: Plan, name: str | None) -> Cell:
    cells = {c.id: c for c in plan.cells if opened.store.has(plan.nodes[c.judge].stage, c.judge)}
    if (name := _named(name)) not in cells:
        raise InputError("no such cell is judged in this run", got=name, fix=nearest(name, list(cells)))
    return cells[name]


# columns of rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """A file of rows: each row's cell and number, and the scores by column."""

    owners: list[str]
    rows: list[int]
    scores: dict[str, Floats]


def _given(
    raw: bytes, path: Path, cell: str | None, columns: Sequence[str] | None, truth: str | None
) -> _Given | TruthAnswers:
    """Read a file of rows, or of a model's own answers, without opening the run."""
    table = _table(raw, path)
    n = max((len(v) for v in table.values()), default=0)
    if n == 0:
        raise DataError("the file holds no row", got=path.name)
    if truth is not None and path.suffix == ".jsonl" and table.keys().isdisjoint(("row", "cell")):
        (name,) = _score_columns(table, columns)
        ended = [e is not False for e in table.get("ends_with_stop", [True] * n)]
        return TruthAnswers(read_answers(path), _numbers(table[name], name, flags=False), np.array(ended))
    if "row" not in table:
        raise DataError("the file has no column `row`", got=sorted(table), fix="keep the column that export wrote")
    owners = table.get("cell") if cell is None else [cell] * n
    if owners is None:
        raise DataError(
            "the file does not say whose rows these are", got=sorted(table), fix="name the cell with --cell"
        )
    if cell is not None and any(c not in (None, cell) for c in table.get("cell", [])):
        raise DataError("the file's column `cell` names others than --cell", got=cell, fix="leave out --cell")
    if any(not isinstance(o, str) for o in owners):
        raise DataError("column 'cell' must be text", got=next(o for o in owners if not isinstance(o, str)))
    names = _score_columns(table, columns)
    scores = {name: _numbers(table[name], name, flags=truth is None) for name in names}
    return _Given([str(o) for o in owners], [_row(v, i) for i, v in enumerate(table["row"])], scores)


def _rows(opened: Opened, plan: Plan, given: _Given, source: str, truth: str | None) -> dict[str, CellScores]:
    owners, rows, scores = given.owners, given.rows, given.scores
    out: dict[str, CellScores] = {}
    for owner in dict.fromkeys(owners):
        at = [i for i, o in enumerate(owners) if o == owner]
        node, x = _judged(opened, plan, owner)
        order = _order([rows[i] for i in at], len(x), owner)
        made = CellScores()
        for name in scores:
            values = np.empty(len(x))
            values[order] = scores[name][at]
            mine = own_scores(opened.store, node) if truth is not None else None
            made.metrics |= (
                {f"user_{name}": _estimate(values, x.strata)} if truth is None else under(truth, owner, values, mine, x)
            )
        made.rows |= dict.fromkeys(made.metrics, node.law_rows.key)
        made.source |= dict.fromkeys(made.metrics, source)
        out[owner] = made
    return out


def _answers(opened: Opened, given: TruthAnswers, source: str, truth: str, cell: str | None) -> dict[str, CellScores]:
    """Let all judged models of the run score a model's own answers, or that of one cell."""
    bench, out = ArtifactLoader(opened.store), dict[str, CellScores]()
    cells = opened.plan.cells if cell is None else [_cell(opened, opened.plan, cell)]
    for at in cells:
        node = opened.plan.judge_of(at)
        if node is None or not node.law_rows.blocks or not opened.store.has(node.stage, node.key):
            continue
        doing(f"scoring the answers of {truth} under {at.id}")
        if (metrics := of_answers(truth, at.id, given, node, bench)) is not None:
            rows: dict[str, str | None] = dict.fromkeys(metrics, node.law_rows.key)
            out[at.id] = CellScores(rows, metrics, dict.fromkeys(metrics, source))
    if not out:
        raise InputError("no judged model of this run scores texts", got=cell, fix="name a cell of a language model")
    return out


def _judged(opened: Opened, plan: Plan, owner: object) -> tuple[JudgeNode, Samples]:
    at = _cell(opened, plan, str(owner))
    node = plan.judge_of(at)
    if node is None or not node.law_rows.blocks:
        raise InputError("the rows of this cell are not kept", got=at.id, fix="name a cell of a language model")
    return node, ArtifactLoader(opened.store).outline(node.context, node.law_rows)


def _estimate(values: Floats, strata: Strata | None) -> Estimate:
    if np.isin(values, (0.0, 1.0)).all():
        return share_estimate(values, strata)
    return mean_estimate(values, "score", strata)


def _order(rows: list[int], size: int, owner: str) -> list[int]:
    """Refuse rows that are not exactly 0 .. size - 1."""
    seen: set[int] = set()
    for r in rows:
        if not 0 <= r < size:
            raise DataError(f"{owner} has no row {r}", got=r, fix=f"its rows are 0 to {size - 1}")
        if r in seen:
            raise DataError(f"row {r} of {owner} is there twice", got=r, fix="keep one score for each row")
        seen.add(r)
    if len(seen) < size:
        missing = next(i for i in range(size) if i not in seen)
        what = f"{owner} has {size} rows, and the file scores {len(seen)} of them; row {missing} is the first without"
        raise DataError(what, fix="score every row: the mean over some of them is another figure")
    return rows


def _score_columns(table: Mapping[str, list[object]], columns: Sequence[str] | None) -> list[str]:
    if columns:
        for name in columns:
            if name not in table or name in COLUMNS:
                fix = nearest(name, sorted(set(table) - COLUMNS))
                raise DataError("the file has no such column of scores", got=name, fix=fix)
        names = list(dict.fromkeys(columns))
    else:
        # One number makes a score column, so that a row without a number is refused, not skipped.
        names = [n for n, v in table.items() if n not in COLUMNS and any(isinstance(x, int | float) for x in v)]
    if not names:
        raise DataError("the file has no column of scores", got=sorted(table), fix="add one of numbers, or name it")
    for name in names:
        if not _NAME.fullmatch(name):
            fix = "use letters, digits and _, 64 at most, a letter first"
            raise DataError("this column cannot name a metric", got=name, fix=fix)
    return names


def _numbers(values: list[object], name: str, *, flags: bool = True) -> Floats:
    """Return a column. `flags`: true and false are numbers, too."""
    out = np.empty(len(values))
    for i, v in enumerate(values):
        if not isinstance(v, int | float) or not is_finite(v) or (isinstance(v, bool) and not flags):
            fix = "give every row a finite number; a row without one cannot be left out of a mean"
            raise DataError(f"column {name!r}, line {i + 1}: not a finite number", got=v, fix=fix)
        out[i] = float(v)
    return out


def _row(value: object, i: int) -> int:
    if not is_number(value) or value != int(value):
        raise DataError(f"column 'row', line {i + 1}: not a row's number", got=value, fix="keep what export wrote")
    return int(value)


def _table(raw: bytes, path: Path) -> dict[str, list[object]]:
    try:
        return {".parquet": _parquet, ".csv": _csv}.get(path.suffix, _lines)(raw)
    except (ValueError, RecursionError, pa.ArrowException) as e:
        fix = f"write {path.suffix} with one row for each of the cell's"
        raise DataError(f"the file of scores cannot be parsed: {e}", got=path.name, fix=fix) from None


def _csv(raw: bytes) -> dict[str, list[object]]:
    body = raw.lstrip(b"\r\n")
    ends = [at for at in (body.find(b"\n"), body.find(b"\r")) if at >= 0]
    commas = body.count(b",", 0, min(ends, default=len(body)))
    if commas >= MAX_COLUMNS:
        raise ValueError(f"it has {commas + 1} columns")
    table = csv.read_csv(pa.BufferReader(raw))
    _bound(table.num_rows, table.num_columns, table.num_columns)
    _distinct(table.column_names)
    return table.to_pydict()


def _bound(rows: int, columns: int, read: int) -> None:
    if rows > MAX_ROWS or columns > MAX_COLUMNS or rows * read > MAX_VALUES:
        raise ValueError(f"it has {rows} rows and {columns} columns")


def _distinct(names: Sequence[str]) -> None:
    """Refuse duplicate column names, which are ambiguous."""
    if len(set(names)) < len(names):
        twice = next(n for n in names if list(names).count(n) > 1)
        raise ValueError(f"the column {brief(twice)} is there twice")


def _parquet(raw: bytes) -> dict[str, list[object]]:
    """Read numbers, and cell names dictionary-encoded: a name that a million rows repeat is stored once."""
    schema = pq.read_schema(pa.BufferReader(raw))
    _distinct(schema.names)
    types = {f.name: f.type for f in schema}
    texts = [n for n, t in types.items() if n == "cell" and pa.types.is_string(t)]
    file = pq.ParquetFile(pa.BufferReader(raw), read_dictionary=texts)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    names = [n for n, t in types.items() if n == "cell" or any(is_plain(t) for is_plain in plain)]
    n = int(file.metadata.num_rows)
    _bound(n, len(types), len(names))
    table = file.read(columns=names)
    if "cell" in names:
        owners = table.column("cell").combine_chunks()
        if pa.types.is_dictionary(owners.type) and owners.dictionary.nbytes > MAX_LINE_BYTES:
            raise ValueError("its cells' names are too long")
    return table.to_pydict()


def _lines(raw: bytes) -> dict[str, list[object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(io.BytesIO(raw), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"line {number} is too long")
        if not line.strip():
            continue
        value: object = json.loads(line.decode("utf-8"))
        if not is_object(value):
            raise ValueError(f"line {number} is no object")
        rows.append(value)
        if len(rows) > MAX_ROWS or len(rows[-1]) > MAX_COLUMNS:
            raise ValueError(f"line {number}: more than {MAX_ROWS} rows or {MAX_COLUMNS} columns")
    names = list(dict.fromkeys(k for r in rows for k in r))
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"its rows have {len(names)} different columns")
    return {name: [r.get(name) for r in rows] for name in names}
