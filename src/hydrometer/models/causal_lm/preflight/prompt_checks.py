"""Checks of prompts: stop tokens at the end of a prompt, and what a chat template does to messages.

For the doctor and for judging. The template is rendered a few more times: at other times of day, with marker words in
place of messages, and with an answer appended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydrometer.core.errors import DataError
from hydrometer.core.findings import SHARED_PROMPTS, Finding, note, warning
from hydrometer.models.causal_lm.data.parts import parts_of
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.data.templates import render_chat
from hydrometer.models.causal_lm.data.text_dataset import Turns, turns_in_text
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.causal_lm.text_truth import text_truth
from hydrometer.models.causal_lm.truth_spec import PromptsFile, TextFile, Truth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ENOUGH", "examine_parts", "examine_prompts", "shared_prompts"]

ENOUGH = 30
"""Prompts from which an interval clustered by prompt is nearly what it says (docs, Uncertainty)."""

_RENDERED = 16
"""Most conversations that are rendered again."""
# The first two have no field alike, weekday and half of the day among them; each is another seed of what is random.
_TIMES = (
    "1987-02-03T04:05:06.123456",
    "2038-11-20T17:48:59.654321",
    *(f"{y}-06-30T12:30:00" for y in range(2001, 2007)),
)
_WORD = "hydrometer{}word"
_ASSISTANT = ("assistant", "model")


def shared_prompts(truth: Truth) -> list[Finding]:
    """Say that models are judged on the prompts they are trained on, where a file has several. Raises DataError."""
    if not isinstance(truth.prompts, PromptsFile) or truth.evaluate is not None:
        return []
    n = len({turns for _, turns in parts_of(truth.prompts)[0].asked})
    if n < 2:
        return []
    return [
        warning(
            SHARED_PROMPTS,
            f"models are judged on the {n} prompts that they are trained on",
            "the figures say nothing of other prompts, on which a student may be worse",
            "keep some for judging: prompts: {file: ..., evaluate: 0.2}",
        )
    ]


def examine_parts(chain: CausalLMChain) -> list[Finding]:
    """Say what trains, chooses an epoch and is judged on; warn where few prompts are. Raises DataError."""
    source = chain.truth.text or chain.truth.prompts
    if not isinstance(source, PromptsFile | TextFile):
        return []
    trained, judged = parts_of(source)
    found: list[Finding] = []
    if judged is not None:
        texts, n = text_truth(chain), len(trained.asked)
        if texts is None:
            of, chosen = min(n, chain.data.train), min(n, chain.data.validate_)
            what = f"{chain.data.train} answers to {of} prompts train, and {chain.data.validate_} other answers, drawn "
            what += f"apart to {chosen} of these prompts, choose the epoch; "
            what += f"models are judged on {len(judged.asked)} prompts of which none has a part in either"
        else:
            what = f"{texts.train} texts train, and {texts.validate} others choose the epoch; "
            what += f"models are judged on {texts.evaluate} texts"
            what += f" to {len(judged.asked)} prompts" if judged.asked[0][1] else ""
            what += " of which none has a part in either"
        why = "few to train on teach little, and by few an epoch is chosen by chance"
        fix = "nothing if that is meant; else change evaluate, data.train, data.validate, or the file"
        found.append(note("parts", what, why, fix))
    n = len({turns for _, turns in (judged or trained).asked})
    if source.are == "sample" and 1 < n < ENOUGH:
        fix, share = f"judge on {ENOUGH} prompts or more", source.evaluate
        if isinstance(share, float):
            fix += f": give {math.ceil(ENOUGH / share - 1e-9)} at evaluate: {share:g}"
            n_all = n + len(trained.asked)
            fix += f", or set evaluate: {math.ceil(100 * ENOUGH / n_all) / 100:g}" if n_all >= 2 * ENOUGH else ""
        why = f"prompts are a sample, so intervals have {n - 1} degrees of freedom: they are wide, and hold less often "
        why += "than they say where prompts differ much"
        found.append(warning("few-prompts", f"{n} prompts carry every interval", why, fix))
    return found


def examine_prompts(prompts: Prompts, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> list[Finding]:
    """Return findings about prompts.

    Parameters
    ----------
    prompts : with their turns where a chat template rendered them.
    tokenizer : that they were encoded with.
    stop_ids : E, where answers end.
    """
    found = _messages_as_text(prompts)
    if prompts.turns is None:
        return [*found, *_stopped([p for p, text in zip(prompts.ids, prompts.texts, strict=True) if text], stop_ids)]
    template = _Template(tokenizer)
    chosen = _some(prompts.turns)
    suspect = [i for i, p in enumerate(prompts.ids) if p[-1] in stop_ids]
    # A stop token with which a template opens the assistant's turn is meant, but for the end of a sequence.
    meant = {prompts.ids[i][-1] for i in suspect[:_RENDERED] if template.opens(prompts.turns[i])}
    if isinstance(eos := tokenizer.eos_token_id, int):
        meant.discard(eos)
    return [
        *found,
        *_stopped([prompts.ids[i] for i in suspect if prompts.ids[i][-1] not in meant], stop_ids),
        *_answered(prompts.turns),
        *_varies(template, chosen),
        *_unopened(template, chosen),
        *_dropped(template, chosen),
    ]


@dataclass(frozen=True, slots=True)
class _Template:
    """The tokenizer's template; renders None for conversations that it refuses."""

    tokenizer: PreTrainedTokenizerBase

    def render(self, turns: Turns, *, opened: bool = True, at: str | None = None) -> str | None:
        try:
            return render_chat(self.tokenizer, turns, "a prompt", opened=opened, at=at)
        except DataError:
            return None

    def opens(self, turns: Turns) -> bool:
        """Whether the template reacts to a request to open the assistant's turn."""
        return self.render(turns, at=_TIMES[0]) != self.render(turns, opened=False, at=_TIMES[0])


def _some(turns: Sequence[Turns]) -> list[Turns]:
    """Choose conversations: one of every sequence of roles, then evenly spaced."""
    kinds = {tuple(role for role, _ in t): t for t in reversed(turns)}
    even = [turns[i * len(turns) // _RENDERED] for i in range(_RENDERED)]
    return list(dict.fromkeys([*kinds.values(), *even]))[:_RENDERED]


def _stopped(ids: Sequence[tuple[int, ...]], stop_ids: Sequence[int]) -> Iterator[Finding]:
    ended = sum(p[-1] in stop_ids for p in ids)
    if ended:
        yield warning(
            "prompt-ends-in-stop",
            f"{_count(ended)} with a stop token",
            "the model is asked what follows an end, which is no answer",
            "take the end of sequence out of the text, out of what the tokenizer adds, or out of the chat template",
        )


def _count(n: int) -> str:
    return f"{n} prompt{' ends' if n == 1 else 's end'}"


def _messages_as_text(prompts: Prompts) -> Iterator[Finding]:
    texts = [t[0][1] for t in prompts.turns if len(t) == 1] if prompts.turns is not None else prompts.texts
    n = sum(turns_in_text(text) is not None for text in texts)
    if n:
        yield warning(
            "messages-as-text",
            f"the text of {n} of {len(prompts.ids)} prompts is JSON of messages",
            "each is taken for one turn of the user, who says brackets and quotes",
            "name the column messages, in which JSON text is read as messages",
        )


def _answered(turns: Sequence[Turns]) -> Iterator[Finding]:
    n = sum(t[-1][0] in _ASSISTANT for t in turns)
    if n:
        yield warning(
            "ends-with-assistant",
            f"{_count(n)} with the assistant's turn",
            "the template closes that turn and opens another: what is judged is a second answer in a row",
            "take the last message off the prompts; where it is the answer to score, judge --truth-text reads it",
        )


def _varies(template: _Template, chosen: Sequence[Turns]) -> Iterator[Finding]:
    for turns in chosen:
        said = {text for time in _TIMES if (text := template.render(turns, at=time)) is not None}
        if len(said) > 1:
            one, other, *_ = sorted(said)
            yield warning(
                "template-varies",
                f"the chat template writes what changes by itself: {_apart(one, other)}",
                "a run keeps its prompts as they were rendered when it began, and goes on with them; another run, "
                "or a server, asks other prompts on another day",
                "save the tokenizer with a template that has the date, or whatever it is, written out",
            )
            return


def _apart(one: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, at - 20)
    return f"{one[start : at + 12]!r} or {other[start : at + 12]!r}"


def _unopened(template: _Template, chosen: Sequence[Turns]) -> Iterator[Finding]:
    """Templates that do not open the assistant's turn where they are asked to, though turns of it have a beginning."""
    asked = [t for t in chosen if t[-1][0] not in _ASSISTANT]
    for turns in asked:
        prompt = template.render(turns, at=_TIMES[0])
        if prompt is None or template.opens(turns):
            return
        word = _WORD.format(0)
        whole = template.render((*turns, ("assistant", word)), opened=False, at=_TIMES[0])
        if whole is None or word not in whole:
            return
        between = whole[len(prompt) : whole.index(word)] if whole.startswith(prompt) else whole
        if not between.strip():
            return  # the answer follows where the prompt ends
    if asked:
        yield warning(
            "no-generation-prompt",
            "the chat template does not open the assistant's turn: add_generation_prompt makes no difference",
            "the model is asked to go on after the user's turn, and may write another of the user's",
            "save the tokenizer with a template that writes the beginning of the assistant's turn at the end",
        )


def _dropped(template: _Template, chosen: Sequence[Turns]) -> Iterator[Finding]:
    """Text of messages that is not in what the template writes."""
    lost: dict[str, str] = {}
    trimmed = 0
    for turns in chosen:
        rendered = template.render(turns, at=_TIMES[0])
        if rendered is None:
            continue
        missing = _missing(rendered, turns) or _missing_words(template, turns)
        for role, content in missing:
            lost.setdefault(role, content)
        trimmed += not missing and bool(_missing(rendered, turns, whole=True))
    if lost:
        role, content = next(iter(lost.items()))
        whose = " and ".join(sorted(lost))
        yield warning(
            "text-dropped",
            f"the chat template leaves out or changes text of messages ({whose}), for example {content[:60]!r}",
            "the model does not see what the prompts say",
            f"use prompts without it, or a template that writes what the {role} says",
        )
        return
    if trimmed:
        yield note(
            "text-trimmed",
            f"the chat template takes blanks off the ends of messages, in {trimmed} of {len(chosen)} prompts",
            "the model does not see them",
            "nothing, where that is meant; else use a template that writes messages as they are",
        )


def _missing(rendered: str, turns: Turns, *, whole: bool = False) -> list[tuple[str, str]]:
    """Messages whose text has no place of its own in what was rendered; `whole`: blanks at its ends included."""
    taken: list[tuple[int, int]] = []
    out: list[tuple[str, str]] = []
    for role, content in sorted(turns, key=lambda t: len(t[1]), reverse=True):
        said = content if whole else content.strip()
        quoted = [json.dumps(said, ensure_ascii=a)[1:-1] for a in (False, True)]
        if said and not any(_place(rendered, text, taken) for text in (said, *quoted)):
            out.append((role, content))
    return out


def _place(rendered: str, text: str, taken: list[tuple[int, int]]) -> bool:
    start = rendered.find(text)
    while start >= 0:
        end = start + len(text)
        if all(end <= a or start >= b for a, b in taken):
            taken.append((start, end))
            return True
        start = rendered.find(text, start + 1)
    return False


def _missing_words(template: _Template, turns: Turns) -> list[tuple[str, str]]:
    """Messages that are left out whatever they say, found by words that stand nowhere else."""
    marked = tuple((role, _WORD.format(i)) for i, (role, _) in enumerate(turns))
    rendered = template.render(marked, at=_TIMES[0])
    if rendered is None:
        return []
    return [turns[i] for i, (_, word) in enumerate(marked) if word not in rendered and turns[i][1].strip()]
