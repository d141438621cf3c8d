"""From what is asked to a chain of given models: sources found, prompts encoded, texts read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hydrometer.core.errors import DataError, InputError, LawMismatchError, ModelError
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.causal_lm.data.law_file import LawFile
from hydrometer.models.causal_lm.data.parts import Kept, Part, encoded, is_templated, part_of
from hydrometer.models.causal_lm.data.prompts import Prompts, conversations_digest
from hydrometer.models.causal_lm.data.text_dataset import Answered, read_answers, read_questions, said_columns
from hydrometer.models.causal_lm.engines.served_model import source_of
from hydrometer.models.causal_lm.given import GivenModel, JudgedModels, threads
from hydrometer.models.causal_lm.loading.load import locate
from hydrometer.models.causal_lm.pretrained.existing import Existing, find_model
from hydrometer.models.causal_lm.text_rows import refuse_ends
from hydrometer.run.graph.join import kept_prompts
from hydrometer.run.judging.judge_settings import JudgeSettings
from hydrometer.store.artifacts import content_key
from hydrometer.store.records import RunFolder

__all__ = ["Question", "pose"]

DEFAULT_ROWS = 256
DEFAULT_TOKENS = 64
_BLOCK_ROWS = 128
MAX_DRAWN = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is asked, all sources found.

    Attributes
    ----------
    chain : the models, the truth or the reference first where there is one, and what they are asked.
    anchored : whether the first model is a truth or a reference.
    same : by model, whether it has the vocabulary of the first.
    described : by model, what it is.
    prompts_are : what the prompts are.
    decodings : of every student, None for as it is.
    chat : whether prompts were put into a chat template.
    notes : what a reader should know, one line each.
    rendered : prompts as a chat template wrote them, by the name that the folder keeps them under.
    """

    chain: JudgedModels
    anchored: bool
    same: tuple[bool, ...]
    described: tuple[str, ...]
    prompts_are: PromptsAre
    decodings: tuple[Selectivity | None, ...]
    chat: bool
    seed: int
    notes: tuple[str, ...]
    rendered: Mapping[str, Mapping[str, object]]

    @property
    def anchor(self) -> GivenModel | None:
        """The truth or the reference."""
        return self.chain.models[0] if self.anchored else None

    @property
    def students(self) -> tuple[GivenModel, ...]:
        """In the order given."""
        return self.chain.models[1:] if self.anchored else self.chain.models

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return len(self.chain.models[0].prompts.ids)


def pose(settings: JudgeSettings, folder: RunFolder) -> Question:
    """Find all models and read all rows; prompts that the folder keeps are not rendered again. Raises InputError."""
    named = settings.truth if settings.truth is not None else settings.reference
    answered = None if settings.truth_text is None else read_answers(Path(settings.truth_text))
    asked = answered
    if asked is None and settings.prompts is not None:
        asked = read_questions(Path(settings.prompts))
    part = None if asked is None else part_of(asked)
    if part is not None:  # what the files alone say, before a model is opened
        _what_prompts_are(settings.prompts_are, len(part.asked))
        _rows(settings, len(part.asked))
        _refuse_turns(settings, part)
    for source in settings.students if named is None else (named, *settings.students):
        where = source_of(source)
        if isinstance(where, str):
            locate(where, base=settings.base)
    anchor = None if named is None else find_model(named, settings.base)
    students = [find_model(s, settings.base) for s in settings.students]
    models = students if anchor is None else [anchor, *students]
    _refuse_decoded(settings, students)
    own = _brought(students, models) if asked is None else None
    chat = _chat(settings.chat, part, models[0])
    prompts, stops, rendered = _prompts(models, part, chat, own, folder)
    if answered is not None and part is not None:
        for m in models:
            refuse_ends(part.answers, m.tokenizer, stops[m.vocabulary])
    first = prompts[models[0].vocabulary]
    are = _what_prompts_are(settings.prompts_are, len(first.ids))
    is_drawn = answered is None or anchor is not None
    longest = settings.max_new_tokens or (own.max_new_tokens if own is not None else DEFAULT_TOKENS)
    if not is_drawn:
        longest = 1  # texts need room for themselves alone, which scoring them asks for
    rows = _rows(settings, len(first.ids))
    labels = _labels([m.source for m in models])
    given = tuple(
        GivenModel(
            label,
            m.source,
            settings.base,
            m.resolved.identity,
            m.size,
            prompts[m.vocabulary],
            stops[m.vocabulary],
            longest,
            m.served,
        )
        for m, label in zip(models, labels, strict=True)
    )
    if is_drawn:
        _check_room(models, given)
    odd = () if own is not None else _odd_prompts(models, given, chat)
    chain = JudgedModels(
        models=given,
        held_out=None if answered is None else part,
        rows=rows,
        block_rows=min(_BLOCK_ROWS, rows),
        threads=threads(),
        dtype=settings.dtype,
        device=settings.device,
    )
    return Question(
        chain,
        anchor is not None,
        tuple(m.vocabulary == models[0].vocabulary for m in models),
        tuple(m.resolved.description for m in models),
        are,
        tuple(settings.settings),
        chat,
        settings.seed,
        (*_columns(settings, asked), *_notes(models, labels, stops, own), *_seen(students, given), *odd),
        rendered,
    )


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


def _refuse_decoded(settings: JudgeSettings, students: list[Existing]) -> None:
    served = next((s for s in students if s.served is not None), None)
    decoded = next((s for s in settings.settings if s is not None), None)
    if served is not None and decoded is not None:
        what = f"{served.source} is served, and scores rows as it is alone"
        raise InputError(what, got=f"--decoding {decoded.label}", fix="leave --decoding out, or give a model to open")


def _chat(asked: bool | None, part: Part | None, first: Existing) -> bool:
    if asked and (part is None or not part.asked[0][1]):
        raise InputError("the chat template needs prompts", fix="give --prompts, or leave --chat out")
    return part is not None and is_templated(part, asked, has_template=first.has_template)


def _prompts(
    models: list[Existing], part: Part | None, chat: bool, own: LawFile | None, folder: RunFolder
) -> tuple[dict[str, Prompts], dict[str, tuple[int, ...]], dict[str, Mapping[str, object]]]:
    """Prompts and stop set of every vocabulary, made by the first model that has it; and what the folder is to keep."""
    from hydrometer.models.causal_lm.data.prompts import read_prompts

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
        if part is not None and chat:
            source = conversations_digest([turns for _, turns in part.asked], chat=chat)
            name = content_key({"model": dict(m.resolved.identity), "source": source})
            kept = kept_prompts(folder, name, Kept.from_json)
            if kept is None:
                kept = Kept(source, encoded(part, m.tokenizer, chat))
            prompts[m.vocabulary], rendered[name] = kept.prompts, kept.to_json()
        elif part is not None:
            prompts[m.vocabulary] = encoded(part, m.tokenizer, chat)
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


def _refuse_turns(settings: JudgeSettings, part: Part) -> None:
    if settings.chat and not part.asked[0][1]:
        raise InputError("the chat template needs prompts", fix="leave --chat out: the text is whole documents")
    if settings.chat is False and (several := next((where for where, t in part.asked if len(t) > 1), None)) is not None:
        raise DataError(f"{several}: messages need the chat template", fix="leave --no-chat out")


def _what_prompts_are(asked: PromptsAre | None, n: int) -> PromptsAre:
    if asked == "sample" and n < 2:
        fix = "give more prompts, or --prompts-are fixed"
        raise DataError("one prompt is no sample of prompts", got=n, fix=fix)
    return asked or ("sample" if n > 1 else "fixed")


def _labels(sources: list[str]) -> list[str]:
    """Short names, told apart by a number where two are alike; they go into file names."""
    out: list[str] = []
    for source in sources:
        stem = Path(source.rstrip("/")).name
        for suffix in (".gguf", ".yaml", ".yml"):
            stem = stem.removesuffix(suffix)
        safe = (
            "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in stem)[:48].strip("-.") or "model"
        )
        label, n = safe, 1
        while label in out:
            n += 1
            label = f"{safe}-{n}"
        out.append(label)
    return out


def _check_room(models: list[Existing], given: tuple[GivenModel, ...]) -> None:
    """Refuse prompts that leave no room for an answer, before anything is opened."""
    for m, g in zip(models, given, strict=True):
        longest = max(len(p) for p in g.prompts.ids) + g.max_new_tokens
        if m.room is not None and longest > m.room:
            what = f"prompt and answer exceed the max_position_embeddings of {g.label}"
            raise InputError(what, got=(longest, m.room), fix="shorten the prompts or --max-new-tokens")


def _odd_prompts(models: list[Existing], given: tuple[GivenModel, ...], chat: bool) -> list[str]:
    """What the doctor would say of the prompts, for the first model of every vocabulary."""
    from hydrometer.models.causal_lm.preflight.prompt_checks import examine_prompts

    template = " through its chat template" if chat else ""
    out: list[str] = []
    seen: set[str] = set()
    for m, g in zip(models, given, strict=True):
        if m.vocabulary not in seen:
            seen.add(m.vocabulary)
            found = examine_prompts(g.prompts, m.tokenizer, g.stop_ids)
            out += [f"prompts of {g.label}{template}: {f.what}: {f.why}" for f in found]
    return out


def _columns(settings: JudgeSettings, rows: list[Answered] | None) -> tuple[str, ...]:
    """How the columns of a file were read, where they have other names than a prompt and its answer."""
    said = None if rows is None else said_columns(rows)
    return () if said is None else (f"{settings.truth_text or settings.prompts}: {said}",)


def _seen(students: list[Existing], given: tuple[GivenModel, ...]) -> Iterator[str]:
    """Say which students of a run are judged on prompts that its models are trained on."""
    for m, g in zip(students, given[len(given) - len(students) :], strict=True):
        if m.own is None:
            continue
        trained = {p for p, text in zip(m.own.prompts.ids, m.own.prompts.texts, strict=True) if text}
        if n := sum(p in trained for p in g.prompts.ids):
            yield (
                f"{n} of {len(g.prompts.ids)} prompts are training prompts of the run that {g.label} is of: of other "
                "prompts its figures say nothing; give --prompts that it has not seen"
            )


def _notes(
    models: list[Existing], labels: list[str], stops: dict[str, tuple[int, ...]], own: LawFile | None
) -> tuple[str, ...]:
    out: list[str] = []
    if own is not None:
        out.append(f"prompts, stop set and max_new_tokens are those that {labels[-1]} was fitted with")
    for m, label in zip(models, labels, strict=True):
        if m.served is not None:
            at = m.served.served
            out.append(f"{label} is {at.model}, served at {at.base_url}: plain means, without control variates")
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
