"""Answers are encoded and decoded behind their prompt, whatever a tokenizer does at the beginning of a text.

What a reader sees of prompt and answer together is the oracle: the tokenizer's own decoding of all ids.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import BertTokenizer, PreTrainedTokenizerFast  # noqa: E402

from hydrometer.models.causal_lm.data.answer_text import PromptEnd, prompt_ends  # noqa: E402
from hydrometer.models.causal_lm.data.prompts import Prompts, encode_prompts, read_prompts  # noqa: E402
from hydrometer.models.causal_lm.data.trl_rows import Form, text_rows  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.retokenize import Texts, canonical, texts_of  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from tiny import make_llama  # noqa: E402

LINES = ["The capital of France is Paris.", "One and one make two!", "Answer: yes, it is not 5.", "é ü 漢字 is"] * 30
CONTROL = ["<unk>", "<s>", "</s>", "<|asks|>", "<|says|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEMPLATE = (
    "{% for m in messages %}{{ '<|asks|>' if m.role == 'user' else '<|says|>' }}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|says|>{% endif %}"
)
KINDS = ["prepended", "metaspace-always", "metaspace-first", "metaspace-never", "bytes", "bytes-prefixed", "trimmed"]


def _inner(kind: str) -> Tokenizer:
    if kind.startswith(("bytes", "trimmed")):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bytes-prefixed")
        inner.decoder = decoders.ByteLevel()
        if kind == "trimmed":  # offsets leave blanks out
            inner.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=380, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(LINES, trainer)
        return inner
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*CONTROL, *BYTES], show_progress=False)
    if kind == "prepended":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        inner.train_from_iterator(LINES, trainer)
        return _as_text(inner, pre_tokenizer=None)
    scheme: Any = kind.removeprefix("metaspace-")
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    inner.train_from_iterator(LINES, trainer)
    return _as_text(inner)


def _as_text(inner: Tokenizer, **parts: object) -> Tokenizer:
    """Bytes are tokens of the model, not control tokens, which a trainer makes of all that it must know."""
    body = json.loads(inner.to_str()) | parts
    body["added_tokens"] = [t for t in body["added_tokens"] if t["content"] in CONTROL]
    return Tokenizer.from_str(json.dumps(body))


def tokenizer(kind: str, *, begins: bool = True) -> Any:
    inner = _inner(kind)
    if begins:
        own = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        before = [inner.post_processor] if inner.post_processor is not None else []
        inner.post_processor = processors.Sequence([*before, own])
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    out = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=CONTROL[3:], **names)
    out.chat_template = TEMPLATE
    return out


def wordpiece() -> Any:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=True)
    inner.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=CONTROL, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def end_of(words: Any, prompt: str | None) -> PromptEnd:
    return prompt_ends(read_prompts(prompt, words), words)[0]


def seen(words: Any, ids: Any) -> str:
    return words.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["The capital of France is", "One", "is it 5?"])
@pytest.mark.parametrize("answer", [" Paris.", "Paris", "  two", ", not 5", " 漢字", "é", " "])
def test_an_answer_is_what_follows_the_prompts_ids(kind: str, prompt: str, answer: str) -> None:
    words = tokenizer(kind)
    end = end_of(words, prompt)
    whole = words(prompt + answer)["input_ids"]
    found = end.encode(answer)
    assert [*end.prompt, *found.ids] == whole
    assert (found.round_trip, found.joined) == (True, True)
    assert end.decode(found.ids) == answer
    assert seen(words, whole) == seen(words, end.prompt) + answer


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_token_spans_the_boundary_the_prompt_keeps_its_ids(kind: str) -> None:
    """The prompt ends with a blank, which every tokenizer here puts before the next word."""
    words = tokenizer(kind)
    end = end_of(words, "Answer: ")
    assert words("Answer: Paris")["input_ids"][: len(end.prompt)] != list(end.prompt)
    found = end.encode("Paris")
    assert (found.round_trip, found.joined) == (True, False)
    assert seen(words, [*end.prompt, *found.ids]) == seen(words, end.prompt) + "Paris"
    merged = end_of(words, "The capital of France is Par").encode("is.")
    assert (merged.round_trip, merged.joined) == (True, False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["One and", None])
def test_drawn_ids_say_what_stands_behind_the_prompt(kind: str, prompt: str | None) -> None:
    """Also ids that the tokenizer would not make of any text."""
    words = tokenizer(kind)
    end = end_of(words, prompt)
    rng = np.random.default_rng(0)
    plain = [i for i in range(len(CONTROL), len(words)) if i not in words.all_special_ids]
    for _ in range(50):
        ids = rng.choice(plain, 5).tolist()
        assert seen(words, end.prompt) + end.decode(ids) == seen(words, [*end.prompt, *ids])


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_special_token_a_text_is_its_own_inverse(kind: str) -> None:
    """A chat template's prompt ends with a token behind which some tokenizers begin with a space.

    Where a space of the text's own gives the same ids, they are taken for the text with it.
    """
    words = tokenizer(kind)
    prompts = encode_prompts([("here", (("user", "One and one"),))], words, chat=True, are="fixed")
    (end,) = prompt_ends(prompts, words)
    assert end.prompt[-1] == words.convert_tokens_to_ids("<|says|>")
    for answer in ("Paris.", " Paris.", "two"):
        found = end.encode(answer)
        whole = words((prompts.written or ("",))[0] + answer, add_special_tokens=False)["input_ids"]
        assert [*end.prompt, *found.ids] == whole
        assert found.joined
        same = answer[0] != " " and end.encode(" " + answer).ids == found.ids
        assert same == (kind in ("metaspace-always", "bytes-prefixed") and answer[0] != " ")
        assert found.round_trip is not same
        if same:
            continue
        assert end.decode(found.ids) == answer
        apart = end.decode([i for t in words.convert_ids_to_tokens(list(found.ids)) for i in _letters(words, t)])
        assert apart == answer  # the same text in smaller tokens


def _letters(words: Any, token: str) -> list[int]:
    ids = [words.convert_tokens_to_ids(c) for c in token]
    return [words.convert_tokens_to_ids(token)] if words.unk_token_id in ids else ids


@pytest.mark.parametrize("kind", KINDS)
def test_what_looks_like_a_control_token_is_text(kind: str) -> None:
    words = tokenizer(kind)
    end = end_of(words, "One and")
    found = end.encode(" is</s> it")
    assert found.round_trip
    assert words.eos_token_id not in found.ids
    assert words.eos_token_id in end.encode(" is</s> it", special=True).ids


def test_a_lost_or_an_added_space_is_noticed() -> None:
    """A tokenizer that drops blanks says the answer "Paris" as " Paris"; one that adds one to documents, too."""
    dropped = end_of(wordpiece(), "The capital of France is")
    assert dropped.encode(" Paris").round_trip
    assert not dropped.encode("Paris").round_trip
    assert not dropped.encode(" Paris  is").round_trip
    assert end_of(wordpiece(), "Answer").encode(": yes").round_trip is False  # written "Answer : yes"
    added = end_of(tokenizer("bytes-prefixed"), None).encode("Paris")
    assert (added.round_trip, added.joined) == (False, True)
    assert end_of(tokenizer("bytes"), None).encode("Paris").round_trip


def test_without_offsets_the_prompts_own_ids_are_the_boundary(tmp_path: Any) -> None:
    """A tokenizer of Python's, which knows no characters of its tokens."""

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    fast = tokenizer("metaspace-always")
    slow = Slow(tokenizer_object=fast.backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for prompt, answer in (("The capital of France is", " Paris"), ("Answer: ", "Paris")):
        assert end_of(slow, prompt).encode(answer) == end_of(fast, prompt).encode(answer)
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]", "one", "two", "##s"]))
    bert = BertTokenizer(str(tmp_path / "vocab.txt"))
    found = end_of(bert, "one").encode(" two")
    assert found.ids == (bert.convert_tokens_to_ids("two"),)


def test_a_prompt_of_ids_alone_has_its_text_again() -> None:
    for kind in KINDS:
        words = tokenizer(kind)
        known = read_prompts(["The capital of France is", "One"], words)
        assert [e.encode(" Paris") for e in prompt_ends(Prompts(known.ids, known.texts), words)] == [
            e.encode(" Paris") for e in prompt_ends(known, words)
        ]


# what is scored -----------------------------------------------------------------------------------------------------


def unigram(words: Any, weights: dict[str, float], prompts: Any) -> CausalLaw:
    """A law whose next token does not depend on what came before: all states are equal, the head has the weights."""
    net = make_llama(vocab=len(words), layers=1)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.model.embed_tokens.weight.fill_(1.0)
        net.model.norm.weight.fill_(1.0)
        logits = torch.full((len(words),), -20.0)
        for token, p in weights.items():
            logits[words.convert_tokens_to_ids(token)] = float(np.log(p))
        net.lm_head.weight[:] = logits[:, None] / net.config.hidden_size
    return CausalLM(net, words).law(prompts, max_new_tokens=4, block_rows=4, stop=["</s>"])


@pytest.mark.parametrize("kind", ["prepended", "metaspace-always", "metaspace-first"])
def test_held_out_text_has_the_probability_of_its_own_tokens(kind: str) -> None:
    """The answer " is" is one token of probability 1/4 and the end has 1/2: log 1/8, of 3 bytes."""
    words = tokenizer(kind)
    token = words.convert_ids_to_tokens(list(end_of(words, "One is").encode(" is").ids))
    assert token == ["▁is"]
    law = unigram(words, {"▁is": 0.25, "</s>": 0.5, "▁": 0.25}, "One is")
    texts = Texts((" is", "is"), np.ones(2, np.bool_), np.zeros(2, np.int64))
    found = canonical(texts, law)
    assert found.log_prob[0] == pytest.approx(np.log(1 / 8), abs=1e-5)
    assert found.log_prob[1] < -15  # "One isis" is another text, of other tokens
    assert texts.n_bytes.tolist() == [3, 2]
    assert found.round_trip.tolist() == [1, 1]
    assert found.spans[0] == 0


def test_drawn_rows_keep_the_space_between_prompt_and_answer() -> None:
    words = tokenizer("prepended")
    law = unigram(words, {"▁is": 0.5, "</s>": 0.5}, "One")
    rows = law.sample(4, seed=1)
    said = [int((row != words.eos_token_id).sum()) for row in (rows.row(i) for i in range(4))]
    assert max(said) > 0
    found = texts_of(rows, law.prompts, words)
    assert list(found.texts) == [" is" * n for n in said]
    assert law.texts(rows)[1] == list(found.texts)
    again = canonical(found, law)
    assert again.log_prob == pytest.approx(law.log_prob(rows))
    assert again.round_trip.tolist() == [1] * 4


def test_bytes_that_are_no_character_are_not_given_back() -> None:
    words = tokenizer("bytes", begins=False)
    half, whole = words("é")["input_ids"], words("\ufffd")["input_ids"]
    broken = words.convert_tokens_to_ids("Ã")
    a = words.convert_tokens_to_ids("a")
    rows = [[a, broken, a, 2], [a, *whole, 2], [a, broken], [a, *whole], [a, *half, 2]]
    ids = np.zeros((5, 6), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(r) for r in rows])
    stopped = np.array([r[-1] == 2 for r in rows])
    law = CausalLM(make_llama(vocab=len(words), layers=1), words).law("One", max_new_tokens=8, block_rows=8)
    x = Sequences(law.prompts.ids, np.zeros(5, np.int64), ids, lengths, stopped, np.zeros(5))
    found = texts_of(x, law.prompts, words)
    assert found.texts == ("a\ufffda", "a\ufffd", "a", "a\ufffd", "aé")
    assert canonical(found, law).round_trip.tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [Form("prompt-completion"), Form("text"), Form("messages")])
def test_rows_for_a_trainer_lead_back_to_their_ids(kind: str, form: Form) -> None:
    words = tokenizer(kind, begins=not form.is_chat)
    prompts = (
        encode_prompts([("here", (("user", "One and one"),))], words, chat=True, are="fixed")
        if form.is_chat
        else read_prompts("One and one", words)
    )
    ids = [*prompt_ends(prompts, words)[0].encode(" is two").ids, words.eos_token_id]
    x = Sequences(
        prompts.ids, np.zeros(1, np.int64), np.array([ids]), np.array([len(ids)]), np.ones(1, bool), np.zeros(1)
    )
    (row,) = text_rows(x, form, words, (words.eos_token_id,), prompts)
    assert row.lost == ""
    if form.format == "prompt-completion":
        assert row.columns["completion"] == " is two</s>"
