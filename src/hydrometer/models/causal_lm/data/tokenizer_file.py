"""Whether the tokenizer that transformers opens is the one of the folder's tokenizer.json.

Some classes of transformers take the vocabulary from the file and build their own normalizer, splitting of words or
decoder around it. Text then becomes other ids than those that the model was trained on and that a server which reads
the file would use. `tokenizers` opens the file as it is; the two are compared on a spread of texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hydrometer.core.errors import DataError, one_line
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.model_files import as_data_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hydrometer.models.causal_lm.data.prompts import Prompts

__all__ = ["Difference", "difference", "prompts_differ"]

T = TypeVar("T")

TEXTS = (
    "Rows 12",
    "Hello  world 123, rows 12",
    "1234567890 3.14 1,000",
    "don't we'll I'M they've",
    "DON'T WE'LL",
    "x = f(a, b)\n    return x+1\n",
    "line\n\nline\r\n\ttab",
    'a_b-c/d\\e {"k": [1]} <b>',
    "na\u00efve caf\u00e9 \u00dcn\u00ef \ufb01 \u00bd \u00c5",
    "\u4f60\u597d,\u4e16\u754c\u3002 \u3053\u3093 \uc548\ub155",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u03b5\u03bb \u05e9\u05dc \u0645\u0631 \u0939\u093f\u0928",
    "\U0001f600\U0001f469\u200d\U0001f467 \u2713\u2026\u2014\u201cq\u201d",
    "e\u0301 \u00a0\u200b\u3000x",
    "https://example.org/a?b=c#d",
    "WORD CamelCase snake_case",
    "!!! ... ---- ====",
)
_EDGES = (" lead", "  two ", "\n\nlead", "trail ", "a   b")
_ADDED = 64
_PROMPTS = 200
_kept: dict[tuple[str, str], Difference | None] = {}


@dataclass(frozen=True, slots=True)
class Difference:
    """A disagreement between the opened tokenizer and the file.

    Attributes
    ----------
    what : one line with an example.
    of : "text" if ordinary text has other ids; "edges" if only text with an added token, or space at its ends, has;
        "decoding" if the same ids decode to other text.
    """

    what: str
    of: str


def difference(resolved: load.Resolved, tokenizer: PreTrainedTokenizerBase) -> Difference | None:
    """Compare a model's tokenizer with its tokenizer.json; None if they agree, or without such a file.

    Special tokens around a text are ignored on both sides.
    """
    key = (json.dumps(dict(resolved.identity)), type(tokenizer).__name__)
    if key not in _kept:
        file = _open(resolved)
        _kept[key] = None if file is None else _compare(file, tokenizer)
    return _kept[key]


def prompts_differ(resolved: load.Resolved, tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> bool:
    """Whether tokenizer.json encodes some of the prompts, evenly spaced, differently."""
    file = _open(resolved)
    if file is None:
        return False
    step = 1 + (len(prompts.ids) - 1) // _PROMPTS
    for ids, text in zip(prompts.ids[::step], prompts.texts[::step], strict=True):
        # The prompt is the text itself, or a template's rendering of it.
        for said in (text, _said(lambda ids=ids: _decode(tokenizer, ids))):
            if said is None or list(ids) not in (_encode(tokenizer, said), _encode(tokenizer, said, whole=True)):
                continue
            if _encode(tokenizer, said) != _encode_by(file, said):
                return True
    return False


def _open(resolved: load.Resolved) -> Any:
    from tokenizers import Tokenizer

    path = load.tokenizer_file(resolved)
    if path is None:
        return None
    file = _said(lambda: Tokenizer.from_file(str(path)))  # transformers cannot read it either
    if file is not None:
        file.no_truncation()
        file.no_padding()
    return file


def _compare(file: Any, tokenizer: PreTrainedTokenizerBase) -> Difference | None:
    name = type(tokenizer).__name__
    added = _added(file, tokenizer)
    edges = [*_EDGES, *added, *(f"a{t}b" for t in added), *(f"a {t} b" for t in added)]
    for of, texts in (("text", TEXTS), ("edges", edges)):
        for text in texts:
            ours, theirs = _encode(tokenizer, text), _encode_by(file, text)
            if ours is not None and theirs is not None and ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
                example = f"{text!r} is {_few(ours, at)} there, {_few(theirs, at)} by the file"
                what = f"{name} of transformers makes other ids of text than the model's tokenizer.json: {example}"
                return Difference(one_line(what, 400), of)
    for text in (*TEXTS, *edges):
        ids = _encode_by(file, text)
        if ids is None:
            continue
        ours = _said(lambda ids=ids: _decode(tokenizer, ids))
        theirs = _said(lambda ids=ids: str(file.decode(ids, skip_special_tokens=False)))
        if ours is not None and theirs is not None and ours != theirs:
            example = f"{_few(ids, 0)} is {ours[:60]!r} there, {theirs[:60]!r} by the file"
            what = f"{name} of transformers reads ids as other text than the model's tokenizer.json: {example}"
            return Difference(one_line(what, 400), "decoding")
    return None


def _added(file: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    found = [str(t) for t in tokenizer.added_tokens_decoder.values()]
    found += [str(t.content) for t in file.get_added_tokens_decoder().values()]
    return list(dict.fromkeys(t for t in found if t))[:_ADDED]


def _few(ids: Sequence[int], at: int) -> str:
    begin = max(at - 1, 0)
    shown = ", ".join(map(str, ids[begin : begin + 6]))
    return f"[{'..., ' if begin else ''}{shown}{', ...' if len(ids) > begin + 6 else ''}]"


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, whole: bool = False) -> list[int] | None:
    return _said(lambda: _ids(tokenizer(text, add_special_tokens=whole)["input_ids"]))


def _encode_by(file: Any, text: str) -> list[int] | None:
    return _said(lambda: _ids(file.encode(text, add_special_tokens=False).ids))


def _ids(found: Iterable[Any]) -> list[int]:
    return [int(i) for i in found]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _said(do: Callable[[], T]) -> T | None:
    """What a tokenizer says; None where it refuses, which is told where the text or the ids are wanted."""
    try:
        with as_data_error("a tokenizer refuses"):
            return do()
    except DataError:
        return None
