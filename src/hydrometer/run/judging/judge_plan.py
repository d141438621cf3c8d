"""From what is asked to jobs and cells: models found, prompts encoded, rows and scores asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hydrometer.core.errors import DataError, InputError, LawMismatchError, ModelError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.causal_lm.data.law_file import LawFile
from hydrometer.models.causal_lm.data.prompts import Kept, Prompts, conversations_digest
from hydrometer.models.causal_lm.data.text_dataset import Answered, read_answers, read_questions
from hydrometer.models.causal_lm.loading.load import locate
from hydrometer.models.causal_lm.pretrained.existing import Existing, find_model, numerics
from hydrometer.run.graph.rendered import kept_prompts
from hydrometer.run.judging.judge_jobs import Drawn, Jobs, LawName, TextRows
from hydrometer.run.judging.judge_settings import JudgeSettings
from hydrometer.store.artifacts import content_key
from hydrometer.store.records import RunFolder

__all__ = ["JudgedCell", "Question", "build_cells", "pose"]

DEFAULT_ROWS = 256
DEFAULT_TOKENS = 64
BLOCK_ROWS = 128
MAX_DRAWN = 10_000_000

Role = Literal["truth", "reference", "student"]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is asked, all sources found.

    Attributes
    ----------
    anchor : the truth, or with held-out text the reference, or None.
    students : in the order given.
    held_out : the texts, per vocabulary the same; None where there is a truth.
    rows : answers drawn from every law.
    n_prompts, prompts_are : how many prompts, and what they are.
    decodings : of every student, None for as it is.
    chat : whether prompts were put into a chat template.
    notes : what a reader should know, one line each.
    rendered : prompts as a chat template wrote them, by the name that the folder keeps them under.
    """

    anchor: LawName | None
    students: tuple[LawName, ...]
    held_out: TextRows | None
    rows: int
    n_prompts: int
    prompts_are: PromptsAre
    decodings: tuple[Selectivity | None, ...]
    chat: bool
    seed: int
    dtype: str
    notes: tuple[str, ...]
    rendered: Mapping[str, Mapping[str, object]]

    @property
    def laws(self) -> tuple[LawName, ...]:
        """Anchor first."""
        return self.students if self.anchor is None else (self.anchor, *self.students)


@dataclass(slots=True)
class JudgedCell:
    """One model as it is decoded, and the keys of the scores that its figures are made of."""

    id: str
    role: Role
    law: LawName
    decoding: Selectivity | None
    parent: str | None
    own: Drawn | None = None
    ids: dict[str, str] = field(default_factory=dict[str, str])
    texts: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def needs(self) -> list[str]:
        """Keys of all jobs behind it."""
        return [*self.ids.values(), *self.texts.values(), *(self.own.blocks if self.own else ())]


def pose(settings: JudgeSettings, folder: RunFolder) -> Question:
    """Find all models and read all rows; prompts that the folder keeps are not rendered again. Raises InputError."""
    named = settings.truth if settings.truth is not None else settings.reference
    answered = None if settings.truth_text is None else read_answers(Path(settings.truth_text))
    asked = answered
    if asked is None and settings.prompts is not None:
        asked = read_questions(Path(settings.prompts))
    distinct, index = ([], np.zeros(0, np.int64)) if asked is None else _distinct(asked, keep=answered is None)
    if asked is not None:  # what the files alone say, before a model is opened
        _what_prompts_are(settings.prompts_are, len(distinct))
        _rows(settings, len(distinct))
        _refuse_turns(settings, distinct)
    for source in settings.students if named is None else (named, *settings.students):
        locate(source, base=settings.base)
    anchor = None if named is None else find_model(named, settings.base)
    students = [find_model(s, settings.base) for s in settings.students]
    models = students if anchor is None else [anchor, *students]
    own = _brought(students, models) if asked is None else None
    chat = _chat(settings.chat, asked, models[0])
    prompts, stops, rendered = _prompts(models, distinct, chat, own, folder)
    first = prompts[models[0].vocabulary]
    are = _what_prompts_are(settings.prompts_are, len(first.ids))
    is_drawn = answered is None or anchor is not None
    longest = settings.max_new_tokens or (own.max_new_tokens if own is not None else DEFAULT_TOKENS)
    if not is_drawn:
        longest = 1  # texts need room for themselves alone, which scoring them asks for
    rows = _rows(settings, len(first.ids))
    numeric = numerics(settings.dtype, settings.device)
    block = min(BLOCK_ROWS, rows)
    labels = _labels([m.source for m in models])
    laws = [
        _law_name(m, label, prompts[m.vocabulary], stops[m.vocabulary], longest, block, numeric)
        for m, label in zip(models, labels, strict=True)
    ]
    held_out = None if answered is None else _held_out(answered, index)
    if is_drawn:
        _check_room(laws)
    odd = () if own is not None else _odd_prompts(laws, chat)
    notes = (*_notes(models, labels, stops, own), *odd)
    return Question(
        laws[0] if anchor is not None else None, tuple(laws[1:] if anchor is not None else laws), held_out, rows,
        len(first.ids), are, tuple(settings.settings), chat, settings.seed, settings.dtype, notes,
        rendered,
    )  # fmt: skip


def _brought(students: list[Existing], models: list[Existing]) -> LawFile | None:
    """What the students bring along where no prompts are given: of all of them, or of none."""
    found = [m.own for m in students]
    if all(o is None for o in found):
        return None
    first = found[0]
    if first is None or any(o is None or o.prompts.digest != first.prompts.digest for o in found):
        what = "the students do not bring the same prompts along"
        raise InputError(what, got=[m.source for m in students], fix="give --prompts")
    if len({m.vocabulary for m in models}) > 1:
        what = "the prompts that the students bring along are ids of one vocabulary, and another is judged beside"
        raise LawMismatchError(what, got=models[0].source, fix="give --prompts")
    return first


def _distinct(rows: list[Answered], *, keep: bool) -> tuple[list[Answered], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Prompts, and which of them each row answers: every row its own where rows are prompts alone."""
    if keep:
        return rows, np.arange(len(rows))
    first: dict[object, int] = {}
    out: list[Answered] = []
    index: list[int] = []
    for r in rows:
        if r.turns not in first:
            first[r.turns] = len(out)
            out.append(r)
        index.append(first[r.turns])
    return out, np.array(index, np.int64)


def _chat(asked: bool | None, rows: list[Answered] | None, first: Existing) -> bool:
    if rows is None or not rows[0].turns:
        if asked:
            raise InputError("the chat template needs prompts", fix="give --prompts, or leave --chat out")
        return False
    if asked is not None:
        return asked
    shape = rows[0].shape
    return shape == "messages" or (shape == "prompt" and first.has_template)


def _prompts(
    models: list[Existing], rows: list[Answered], chat: bool, own: LawFile | None, folder: RunFolder
) -> tuple[dict[str, Prompts], dict[str, tuple[int, ...]], dict[str, Mapping[str, object]]]:
    """Prompts and stop set of every vocabulary, made by the first model that has it; and what the folder is to keep."""
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.inference.retokenize import asked

    prompts: dict[str, Prompts] = {}
    stops: dict[str, tuple[int, ...]] = {}
    rendered: dict[str, Mapping[str, object]] = {}
    for m in models:
        if m.vocabulary in prompts:
            continue
        if own is not None:
            prompts[m.vocabulary], stops[m.vocabulary] = own.prompts, own.stop_ids
            continue
        if chat and not m.has_template:
            raise ModelError("the tokenizer has no chat template", got=m.source, fix="use --no-chat")
        stops[m.vocabulary] = m.stop_ids
        if rows and chat:
            source = conversations_digest([r.turns for r in rows], chat=chat)
            name = content_key({"model": dict(m.resolved.identity), "source": source})
            kept = kept_prompts(folder, name, Kept.from_json)
            if kept is None:
                kept = Kept(source, asked(rows, m.tokenizer, chat=chat, are="fixed"))
            prompts[m.vocabulary], rendered[name] = kept.prompts, kept.to_json()
        elif rows:
            prompts[m.vocabulary] = asked(rows, m.tokenizer, chat=chat, are="fixed")
        else:
            prompts[m.vocabulary] = read_prompts(None, m.tokenizer)
    return prompts, stops, rendered


def _rows(settings: JudgeSettings, n_prompts: int) -> int:
    """Answers drawn from every law."""
    rows = n_prompts * (settings.answers_per_prompt or math.ceil(DEFAULT_ROWS / n_prompts))
    if rows > MAX_DRAWN:
        fix = "lower --answers-per-prompt, or give fewer prompts"
        raise InputError(f"more than {MAX_DRAWN} answers a model", got=rows, fix=fix)
    if rows < 2:
        raise InputError("one answer to one prompt has no error", got=rows, fix="raise --answers-per-prompt")
    return rows


def _refuse_turns(settings: JudgeSettings, rows: list[Answered]) -> None:
    if settings.chat and not rows[0].turns:
        raise InputError("the chat template needs prompts", fix="leave --chat out: the text is whole documents")
    if settings.chat is False and (several := next((r for r in rows if len(r.turns) > 1), None)) is not None:
        raise DataError(f"{several.where}: messages need the chat template", fix="leave --no-chat out")


def _what_prompts_are(asked: PromptsAre | None, n: int) -> PromptsAre:
    if asked == "sample" and n < 2:
        fix = "give more prompts, or --prompts-are fixed"
        raise DataError("one prompt is no sample of prompts", got=n, fix=fix)
    return asked or ("sample" if n > 1 else "fixed")


def _law_name(
    model: Existing, label: str, prompts: Prompts, stop_ids: tuple[int, ...], longest: int, block: int,
    numeric: Mapping[str, object],
) -> LawName:  # fmt: skip
    key = content_key(
        {"model": dict(model.resolved.identity), "prompts": prompts.digest, "stop_ids": list(stop_ids),
         "max_new_tokens": longest, "numerics": dict(numeric)}
    )  # fmt: skip
    return LawName(model, label, prompts, stop_ids, longest, block, key)


def _labels(sources: list[str]) -> list[str]:
    """Short names, told apart by a number where two are alike; they go into file names."""
    out: list[str] = []
    for source in sources:
        stem = Path(source.rstrip("/")).name.removesuffix(".gguf")
        safe = (
            "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in stem)[:48].strip("-.") or "model"
        )
        label, n = safe, 1
        while label in out:
            n += 1
            label = f"{safe}-{n}"
        out.append(label)
    return out


def _held_out(rows: list[Answered], index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> TextRows:
    from hydrometer.models.causal_lm.inference.retokenize import Texts

    texts = tuple(r.answer or "" for r in rows)
    key = content_key({"texts": list(texts), "prompts": index.tolist()})
    return TextRows(Texts(texts, np.ones(len(texts), np.bool_), index), key)


def _check_room(laws: list[LawName]) -> None:
    """Refuse prompts that leave no room for an answer, before anything is opened."""
    for law in laws:
        room, longest = law.model.room, max(len(p) for p in law.prompts.ids) + law.max_new_tokens
        if room is not None and longest > room:
            what = f"prompt and answer exceed the max_position_embeddings of {law.label}"
            raise InputError(what, got=(longest, room), fix="shorten the prompts or --max-new-tokens")


def _odd_prompts(laws: list[LawName], chat: bool) -> list[str]:
    """What the doctor would say of the prompts, for the first model of every vocabulary."""
    from hydrometer.models.causal_lm.preflight.prompt_checks import examine_prompts

    first = {law.model.vocabulary: law for law in reversed(laws)}
    template = " through its chat template" if chat else ""
    return [
        f"prompts of {law.label}{template}: {f.what}: {f.why}"
        for law in laws
        if first[law.model.vocabulary] is law
        for f in examine_prompts(law.prompts, law.model.tokenizer, law.stop_ids)
    ]


def _notes(
    models: list[Existing], labels: list[str], stops: dict[str, tuple[int, ...]], own: LawFile | None
) -> tuple[str, ...]:
    out: list[str] = []
    if own is not None:
        out.append(f"prompts, stop set and max_new_tokens are those that {labels[-1]} was fitted with")
    for m, label in zip(models, labels, strict=True):
        if m.caveat is not None:
            out.append(f"{label}: {m.caveat}")
        if m.stop_ids != stops[m.vocabulary]:
            out.append(f"{label} would stop at {list(m.stop_ids)}; it is judged under {list(stops[m.vocabulary])}")
        if m.vocabulary != models[0].vocabulary:
            out.append(
                f"{label} has another vocabulary than {labels[0]}: nats per byte of text in canonical tokenisation, "
                "which are lower bounds"
            )
    return tuple(out)


def build_cells(question: Question, jobs: Jobs, root: Stream) -> list[JudgedCell]:
    """Ask for the rows and scores of every cell, the anchor's first."""
    if question.held_out is not None:
        return _against_text(question, question.held_out, jobs, root)
    if question.anchor is None:
        raise ValueError("a question without held-out text has a truth")
    return _against_truth(question, question.anchor, jobs, root)


def _against_truth(q: Question, truth: LawName, jobs: Jobs, root: Stream) -> list[JudgedCell]:
    rows = jobs.draw(truth, None, root.child("truth"), q.rows, q.prompts_are)
    as_texts = any(s.model.vocabulary != truth.model.vocabulary for s in q.students)
    first = JudgedCell("judge.truth", "truth", truth, None, None, rows)
    cells = [first]
    own = jobs.score(truth, None, rows)
    first.ids = dict.fromkeys(("truth_on_truth", "law_on_truth", "truth_on_law", "law_on_law"), own)
    if as_texts:
        first.texts = dict.fromkeys(first.ids, jobs.score(truth, None, rows, as_texts=True))
    for student in q.students:
        cells += (mine := _students(q, student, jobs, root, first.id))
        for cell in mine:
            drawn = cell.own
            if drawn is None:
                raise ValueError("a student against a truth is drawn from")
            asked = {
                "truth_on_truth": (truth, None, rows), "law_on_truth": (student, cell.decoding, rows),
                "truth_on_law": (truth, None, drawn), "law_on_law": (student, cell.decoding, drawn),
            }  # fmt: skip
            if student.model.vocabulary == truth.model.vocabulary:
                cell.ids = {name: jobs.score(*a) for name, a in asked.items()}
            if as_texts:
                cell.texts = {name: jobs.score(*a, as_texts=True) for name, a in asked.items()}
    return cells


def _students(q: Question, law: LawName, jobs: Jobs, root: Stream, parent: str | None) -> list[JudgedCell]:
    """A student's cells: as it is, and decoded; all its rows are drawn before any is scored."""
    plain = f"judge.student.{law.label}"
    out: list[JudgedCell] = []
    for s in q.decodings:
        name = plain if s is None else f"{plain}.decoded-{s.slug}"
        drawn = jobs.draw(law, s, root, q.rows, q.prompts_are) if q.anchor is not None else None
        out.append(JudgedCell(name, "student", law, s, parent if s is None else plain, drawn))
    return out


def _against_text(q: Question, text: TextRows, jobs: Jobs, root: Stream) -> list[JudgedCell]:
    cells: list[JudgedCell] = []
    if q.anchor is not None:
        drawn = jobs.draw(q.anchor, None, root, q.rows, q.prompts_are)
        cells.append(JudgedCell(f"judge.reference.{q.anchor.label}", "reference", q.anchor, None, None, drawn))
    for student in q.students:
        cells += _students(q, student, jobs, root, None)
    for cell in cells:
        cell.texts["law_on_text"] = jobs.score(cell.law, cell.decoding, text, as_texts=True)
        if q.anchor is None or cell.own is None:
            continue
        as_texts = cell.law.model.vocabulary != q.anchor.model.vocabulary
        into = cell.texts if as_texts else cell.ids
        into["law_on_law"] = jobs.score(cell.law, cell.decoding, cell.own, as_texts=as_texts)
        into["reference_on_law"] = jobs.score(q.anchor, None, cell.own, as_texts=as_texts)
    return cells
