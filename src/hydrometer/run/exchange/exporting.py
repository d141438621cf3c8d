"""The verb `export`: write a run's rows as a dataset for an external trainer or scorer.

The plan says which rows: those that a native student was fitted to, or those that a cell was judged on. Everything
written is derived from the stored token ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow
import pyarrow.parquet

from hydrometer.core.distillation import Distillation, Wanted, parse_wanted
from hydrometer.core.errors import DataError, InputError
from hydrometer.core.io.files import replacing
from hydrometer.core.io.yaml_io import nearest, user_path
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.rows.sequences import Sequences
from hydrometer.run.exchange.for_trainer import ROWS, native_fits, new_folder, student_fit, write_setting
from hydrometer.run.graph.plan import ChainPlan
from hydrometer.run.graph.reopen import Opened, chain_named, distillations_named, one_of_methods, reopen, require_run
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import Rows
from hydrometer.store.path_safety import refuse_unwritable
from hydrometer.store.storage_uri import Url

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.data.trl_rows import Form, Format
    from hydrometer.models.causal_lm.drafting.for_trl import TrlTrainer

__all__ = ["COLUMNS", "Exported", "Stream", "export"]

# pyarrow has no type information; what leaves this module is annotated.
pa: Any = pyarrow
pq: Any = pyarrow.parquet

Stream = Literal["distill", "train", "evaluate"]
CHUNK = 1024
_PLAIN = "prompt-completion"
IGNORED = -100  # label of tokens without loss, as in transformers

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_IDS, _NATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_KINDS = (
    (_IDS, "input_ids labels prompt_ids completion_ids"),
    (pa.float64(), "log_prob log_prob_unselected"),
    (_NATS, "token_log_prob token_log_prob_unselected"),
    (pa.bool_(), "ends_with_stop round_trip"),
    (pa.int64(), "row seed"),
    (pa.int32(), "prompt_index"),
    (pa.string(), "finish_reason round_trip_lost chain stream role selectivity cell tokenizer"),
)
_FIELDS: dict[str, Any] = {name: kind for kind, names in _KINDS for name in names.split()}
COLUMNS = frozenset([*_FIELDS, "messages", "prompt", "completion", "text"])
"""Columns that an export may have."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote.

    Attributes
    ----------
    path : the file. rows : how many.
    exact : rows whose text tokenises back to their ids, end of sequence included.
    lost : what the text of the other rows loses, with counts.
    cut : rows truncated at max_new_tokens, without a stop token.
    """

    path: Path
    rows: int
    exact: int
    lost: Mapping[str, int]
    cut: int
    stream: Stream
    text_only: bool

    @property
    def advice(self) -> str:
        """One line: what the text loses, and what to train on."""
        if self.exact == self.rows:
            return f"the text of all {self.rows} rows gives their ids"
        why = "; ".join(f"{n}: {what}" for what, n in self.lost.items())
        share = f"the text of {self.rows - self.exact} of {self.rows} rows does not give their ids ({why})"
        if self.stream == "evaluate":
            return share
        if self.text_only:
            return f"{share}; train on prompt_ids and completion_ids, or export without --text-only"
        return f"{share}; train on input_ids and labels, which this file has and TRL takes as they are"


def export(
    folder: str | Path | Url,
    *,
    to: str | Path,
    format: Format = "prompt-completion",
    chat: bool = False,
    text_only: bool = False,
    stream: Stream | None = None,
    role: str | None = None,
    selectivity: str | Selectivity | None = None,
    seed: int | None = None,
    held_out: bool = False,
    cell: str | None = None,
    trainer: TrlTrainer | None = None,
    chain: str | None = None,
    cache: str | Path | None = None,
) -> Exported:
    """Write a run's rows as a dataset of TRL's types, token ids and log-probabilities beside the text.

    Parameters
    ----------
    folder : of the run.
    to : the file, ``.parquet`` or ``.jsonl``; it must not exist.
    format : ``messages``, ``prompt-completion`` or ``text``.
    chat : prompt and completion as messages.
    text_only : leave out `input_ids` and `labels`, for a student of another tokenizer. A trainer then tokenises the
        text; `round_trip` says of each row whether that gives its ids.
    stream : ``distill`` rows were drawn from the teacher, ``train`` rows from the truth, ``evaluate`` rows are those a
        cell was judged on.
    role : who drew the rows: ``truth`` means ``train``, any other ``distill``.
    selectivity : of the teacher, as text ``temperature=0.8`` or as such; needed where the run has several. Where the
        teacher itself was distilled by several methods, ``temperature=0.8,loss=mle`` names one.
    seed : of the run; the first by default.
    held_out : the validation rows that go with these.
    cell : a cell's id, for ``evaluate``.
    trainer : ``gkd`` or ``distillation``: make `to` a folder of what TRL's `GKDTrainer` or `DistillationTrainer` takes
        to distil as the run's student was: its rows, the weights it starts from, its teacher, and arguments.
    chain, cache : as in `run`; needed where there are several chains, or where artifacts are elsewhere.

    Raises
    ------
    InputError : no such run, chain, selectivity, seed or cell; or a file that cannot be written.

    Examples
    --------
    >>> from hydrometer import export
    >>> export("nowhere", to="rows.parquet")
    Traceback (most recent call last):
        ...
    hydrometer.core.errors.FolderError: no run in the folder; got 'nowhere'; give the folder of a run
    """
    from hydrometer.models.causal_lm.data.trl_rows import Form

    if trainer is not None and (chat or text_only or held_out or stream or role or cell or format != _PLAIN):
        fix = "leave out all but --selectivity, --seed, --chain, --cache"
        raise InputError("--trainer writes the rows of one student, as they are", got=trainer, fix=fix)
    target = _target(to) if trainer is None else new_folder(to)
    if chat and format != "prompt-completion":
        raise InputError("--chat goes with the format prompt-completion", got=format, fix="messages are chat already")
    asked = _asked(stream, role, parse_wanted(selectivity), seed, held_out, cell)
    refuse_unwritable(target.parent)
    opened = reopen(require_run(folder), cache)
    _outside(target, opened)
    if trainer is not None:
        found = chain_named(opened.plan, chain)
        node = student_fit(opened.plan, found, asked.selectivity, seed)
        facts = {"role": node.data.law.role, "seed": seed, "cell": None, "selectivity": node.data.selectivity}
        with write_setting(opened.store, node, trainer, target) as folder:
            picked = _Picked(found, node.data, "distill", facts)
            done = _write(opened, picked, folder / ROWS, Form(format), text_only=False)
        return replace(done, path=target / ROWS)
    picked = _pick(opened, chain, asked)
    return _write(opened, picked, target, Form(format, chat), text_only=text_only)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which rows are asked for; see `export`."""

    stream: Stream
    role: str | None
    selectivity: Wanted | None
    seed: int | None
    held_out: bool
    cell: str | None


@dataclass(frozen=True, slots=True)
class _Picked:
    """Rows of a chain, and the facts written beside them."""

    chain: ChainPlan
    rows: Rows
    stream: Stream
    facts: Mapping[str, object]


def _target(to: str | Path) -> Path:
    path = user_path(str(to))
    if "\0" in str(to) or path.suffix not in (".parquet", ".jsonl"):
        raise InputError("rows are written as .parquet or .jsonl", got=str(to), fix="for example --to rows.parquet")
    if path.exists() or path.is_symlink():
        raise InputError("the file exists already", got=str(to), fix="choose another --to")
    if not path.parent.is_dir():
        raise InputError("the folder does not exist", got=str(path.parent), fix="make it first")
    return path


def _outside(target: Path, opened: Opened) -> None:
    home = target.resolve().parent
    for part in ("specs", "prompts", "adopted", "scores", "records", "exhibits", "artifacts"):
        if home.is_relative_to((opened.folder.root / part).resolve()):
            raise InputError("this folder belongs to the run", got=str(target), fix="choose another --to")
    if home.is_relative_to(opened.store.root.resolve()):
        raise InputError("the folder of artifacts belongs to the run", got=str(target), fix="choose another --to")


def _asked(
    stream: Stream | None, role: str | None, s: Wanted | None, seed: int | None, held_out: bool, cell: str | None
) -> _Asked:
    """Refuse contradictory options, and fill in the stream."""
    if stream is None:
        stream = "evaluate" if cell is not None else "train" if role == "truth" and s is None else "distill"
    if stream == "evaluate":
        if cell is None or s is not None or role is not None or seed is not None or held_out:
            fix = "give --stream evaluate --cell ID alone; the ids are in results.csv"
            raise InputError("evaluation rows are named by their cell", got=cell, fix=fix)
    elif cell is not None:
        raise InputError("--cell goes with --stream evaluate", got=stream, fix="leave one of them out")
    elif stream == "train" and s is not None:
        raise InputError("training rows of the truth have no selectivity", got=s.label, fix="use --stream distill")
    return _Asked(stream, role, s, seed, held_out, cell)


def _pick(opened: Opened, chain: str | None, asked: _Asked) -> _Picked:
    if asked.cell is not None:  # of evaluation rows alone
        return _of_cell(opened, asked.cell)
    found = chain_named(opened.plan, chain)
    if asked.stream == "train":
        return _of_fit(opened, found, None, replace(asked, role=asked.role or "truth"))
    s = asked.selectivity
    if s is None:
        settings = found.context.spec.selectivity
        if len(settings) > 1:
            known = "; ".join(",".join(f"{k}={v}" for k, v in x.to_json().items()) for x in settings)
            raise InputError("several selectivities to choose from", got=known, fix="name one with --selectivity")
        s = Wanted(next(iter(settings)))
    return _of_fit(opened, found, distillations_named(found, s), asked)


def _of_cell(opened: Opened, cell_id: str) -> _Picked:
    cells = {c.id: c for c in opened.plan.cells}
    if cell_id not in cells:
        raise InputError("no such cell in this run", got=cell_id, fix=nearest(cell_id, list(cells)))
    cell = cells[cell_id]
    chain = opened.plan.chains[cell.chain]
    node = opened.plan.judge_of(cell)
    if node is None:
        raise InputError("a cell of a map keeps no rows", got=cell_id, fix="name a cell of a language model")
    facts = {"role": cell.role, "seed": cell.seed, "cell": cell.id, "selectivity": node.decoding}
    return _Picked(chain, node.law_rows, "evaluate", facts)


def _of_fit(opened: Opened, chain: ChainPlan, distilled: Sequence[Distillation] | None, asked: _Asked) -> _Picked:
    """Return rows that a native model was fitted to: at the last level, or at the level that `role` drew for.

    Parameters
    ----------
    distilled : the methods that are meant, at one selectivity; None for direct models.
    """
    training = "direct" if distilled is None else "distilled"
    fitted = native_fits(opened.plan, chain, distilled)
    roles = list(dict.fromkeys(node.data.law.role for _, node in fitted))
    role = roles[-1] if asked.role is None and roles else asked.role
    if role not in roles:
        raise InputError("no such role draws these rows", got=role, fix="known: " + (", ".join(roles) or "none"))
    fitted = [(c, node) for c, node in fitted if node.data.law.role == role]
    seeds = sorted({c.seed for c, _ in fitted if c.seed is not None})
    at = asked.seed if asked.seed is not None else seeds[0] if seeds else None
    chosen = [node for c, node in fitted if c.seed in (None, at)]
    if not chosen:
        raise InputError("the run does not have this seed", got=at, fix="known: " + ", ".join(map(str, seeds)))
    if distilled is not None and len({node.data.key for node in chosen}) > 1:  # their teachers differ in the method
        one_of_methods(distilled)
    rows = chosen[0].validate if asked.held_out else chosen[0].data
    if rows is None:
        raise InputError("this chain has no held-out rows", got=chain.context.name, fix="leave out --held-out")
    shared = rows.stream.path[:1] == ("shared",)
    facts = {"role": role, "seed": None if shared else rows.stream.seed, "cell": None, "selectivity": rows.selectivity}
    return _Picked(chain, rows, "train" if training == "direct" else "distill", facts)


def _write(opened: Opened, picked: _Picked, target: Path, form: Form, *, text_only: bool) -> Exported:
    spec = picked.chain.context.spec
    if not isinstance(spec, CausalLMChain):
        fix = "export works on chains of causal_lm"
        raise InputError("rows of this family are not text", got=picked.chain.context.family.name, fix=fix)
    missing = [k for k in picked.rows.blocks if not opened.store.has("draw", k)]
    if missing:
        raise InputError(
            "these rows are not drawn, or not by this machine's versions, threads and processor",
            got=f"{len(missing)} of {len(picked.rows.blocks)} blocks missing",
            fix="`hydrometer run` the experiment first; --until draw makes no more than training rows",
        )
    from hydrometer.models.causal_lm.crossing import written_by
    from hydrometer.models.causal_lm.data.trl_rows import chat_prompts, text_rows
    from hydrometer.models.causal_lm.inference.opened import vocabulary_hash

    tokenizer, prompts, stop_ids = written_by(spec, picked.rows.law.role, picked.rows.purpose)
    if form.is_chat:
        chat_prompts(prompts)  # refuses others before rows are read
    x = ArtifactLoader(opened.store).rows(picked.chain.context, picked.rows)
    assert isinstance(x, Sequences)  # rows of language models
    s = picked.facts["selectivity"]
    setting = json.dumps(s.to_json()) if isinstance(s, Selectivity) else None
    facts: dict[str, object] = {
        **picked.facts,
        "selectivity": setting,
        "chain": picked.chain.context.name,
        "stream": picked.stream,
        "tokenizer": vocabulary_hash(tokenizer),
    }
    lost: Counter[str] = Counter()
    with _writer(target) as put:
        for start in range(0, len(x), CHUNK):
            part = x.take(slice(start, start + CHUNK))
            texts = text_rows(part, form, tokenizer, stop_ids, prompts)
            lost.update(t.lost for t in texts)
            put([_record(part, i, start + i, t.columns, t.lost, facts, text_only) for i, t in enumerate(texts)])
    exact = lost.pop("", 0)
    cut = int((~x.stopped).sum())
    return Exported(target, len(x), exact, dict(lost.most_common()), cut, picked.stream, text_only)


def _record(
    x: Sequences, i: int, row: int, text: dict[str, object], lost: str, facts: Mapping[str, object], text_only: bool
) -> dict[str, object]:
    prompt = list(x.prompt_ids[int(x.prompt_index[i])])
    ids = [int(t) for t in x.row(i)]
    n = len(ids)
    whole: dict[str, object] = {} if text_only else {"input_ids": prompt + ids, "labels": [IGNORED] * len(prompt) + ids}
    nats: dict[str, object] = {}
    for name in ("token_log_prob", "token_log_prob_unselected"):
        column = getattr(x, name)
        nats[name] = None if column is None else [float(v) for v in column[i, :n]]
    plain = x.token_log_prob_unselected
    told = plain is None or x.token_log_prob is not None  # a served model's selected rows bear the unselected one alone
    return {
        **text,
        **whole,
        "prompt_ids": prompt,
        "completion_ids": ids,
        "log_prob": float(x.log_prob[i]) if told else None,
        "log_prob_unselected": None if plain is None else float(plain[i, :n].astype("float64").sum()),
        **nats,
        "finish_reason": x.finish_reason[i],
        "ends_with_stop": bool(x.stopped[i]),
        "round_trip": not lost,
        "round_trip_lost": lost,
        "row": row,
        "prompt_index": int(x.prompt_index[i]),
        **facts,
    }


class _Put(Protocol):
    def __call__(self, rows: list[dict[str, object]]) -> None: ...


@contextmanager
def _writer(target: Path) -> Generator[_Put]:
    """Write the file atomically."""
    sink: Any = None

    def parquet(rows: list[dict[str, object]]) -> None:
        nonlocal sink
        schema = _schema(rows[0])
        if sink is None:
            sink = pq.ParquetWriter(temporary, schema)
        sink.write_table(pa.Table.from_pylist(rows, schema=schema))

    def lines(rows: list[dict[str, object]]) -> None:
        nonlocal sink
        if sink is None:
            sink = temporary.open("w", encoding="utf-8")
        sink.writelines(json.dumps(r, allow_nan=False) + "\n" for r in rows)

    try:
        with replacing(target) as temporary:
            yield parquet if target.suffix == ".parquet" else lines
            if sink is not None:
                sink.close()
    except (OSError, ValueError) as e:  # ArrowInvalid is a ValueError
        raise DataError(f"the rows cannot be written: {e}", got=str(target), fix="choose another --to") from None


def _schema(row: Mapping[str, object]) -> Any:
    def kind(name: str, value: object) -> Any:
        return _FIELDS[name] if name in _FIELDS else pa.string() if isinstance(value, str) else _MESSAGES

    return pa.schema([(name, kind(name, value)) for name, value in row.items()])
