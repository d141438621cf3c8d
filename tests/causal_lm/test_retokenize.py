"""Texts in canonical tokenisation: a lower bound on the probability of a text, by enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from hydrometer.core.errors import StageError  # noqa: E402
from hydrometer.models.causal_lm.data.parts import encoded, part_of  # noqa: E402
from hydrometer.models.causal_lm.data.prompts import Prompts  # noqa: E402
from hydrometer.models.causal_lm.data.text_dataset import Answered  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.retokenize import Texts, canonical, texts_of  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

WORDS = ["<bos>", "<eos>", "<unk>", "a", "b", "ab", "ba"]


def pieces() -> Any:
    """Says "ab" as one token or as two; makes one of them."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("ab|ba|a|b|."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def law() -> CausalLaw:
    return CausalLM(make_llama(vocab=7, layers=2, seed=11, initializer_range=0.1), pieces()).law(
        max_new_tokens=4, block_rows=8
    )


def texts(*rows: tuple[str, bool]) -> Texts:
    return Texts(tuple(t for t, _ in rows), np.array([e for _, e in rows]), np.zeros(len(rows), np.int64))


def sequences(law: CausalLaw, ids: list[list[int]]) -> Sequences:
    width = max(len(x) for x in ids)
    padded = np.array([x + [0] * (width - len(x)) for x in ids])
    n = len(ids)
    stopped = np.array([x[-1] == 1 for x in ids])
    return Sequences(
        law.prompts.ids, np.zeros(n, np.int64), padded, np.array([len(x) for x in ids]), stopped, np.zeros(n)
    )


def test_it_bounds_the_probability_of_the_text_from_below(law: CausalLaw) -> None:
    """Sum over every way of saying a text, by enumeration; special tokens are not said."""
    parts = {w: i for i, w in enumerate(WORDS) if i >= 3}
    for text in ("ab", "aba", "bb", "a"):
        ways = [
            [parts[w] for w in said] + [1]
            for n in range(1, len(text) + 1)
            for said in itertools.product(parts, repeat=n)
            if "".join(said) == text
        ]
        every = law.score_steps(sequences(law, ways)).selected.sum(-1)
        whole = float(np.logaddexp.reduce(every))
        found = canonical(texts((text, True)), law)
        assert found.log_prob[0] <= whole + 1e-9
        assert any(abs(found.log_prob[0] - e) < 1e-6 for e in every)  # it is one of the ways
        if len(ways) == 1:
            assert found.log_prob[0] == pytest.approx(whole, abs=1e-6)
        else:
            assert found.log_prob[0] < whole - 1e-6


def test_the_end_is_scored_where_there_is_one(law: CausalLaw) -> None:
    cut, ended = canonical(texts(("ab", False)), law), canonical(texts(("ab", True)), law)
    assert cut.rows.lengths.tolist() == [1]
    assert ended.rows.lengths.tolist() == [2]
    last = law.score_steps(sequences(law, [[5, 1]])).selected[0, 1]
    assert ended.log_prob[0] - cut.log_prob[0] == pytest.approx(last, abs=1e-9)


def test_a_text_of_nothing(law: CausalLaw) -> None:
    """Nothing, cut, is certain; nothing, ended, is the stop token; and bytes have no end."""
    found = canonical(texts(("", False), ("", True)), law)
    assert found.log_prob[0] == 0
    assert found.log_prob[1] == pytest.approx(law.score_steps(sequences(law, [[1]])).selected[0, 0], abs=1e-9)
    assert texts(("", True), ("é", True)).n_bytes.tolist() == [0, 2]


def test_what_looks_like_a_special_token_is_text_and_round_trips_are_counted(law: CausalLaw) -> None:
    found = canonical(texts(("<eos>", False), ("ab", False), ("ax", False)), law)
    assert 1 not in found.rows.row(0).tolist()
    assert found.round_trip.tolist() == [0, 1, 0]


def test_drawn_rows_as_text(law: CausalLaw) -> None:
    rows = sequences(law, [[3, 5, 1], [4, 6, 3, 2]])
    found = texts_of(rows, law.prompts, law.lm.tokenizer)
    assert found.texts == ("aab", "bbaa")  # the unknown token is special and says nothing
    assert found.ended.tolist() == [True, False]


def test_a_character_that_the_cut_broke_is_left_out() -> None:
    """Byte-level tokens: the first half of a character of two bytes, cut off."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<eos>", *alphabet])}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex("."), "isolated"),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    a, *accent = tokenizer("aé", add_special_tokens=False)["input_ids"]
    assert len(accent) == 2
    whole = np.array([[a, *accent], [a, accent[0], 0]])
    rows = Sequences(
        ((0,),), np.zeros(2, np.int64), whole, np.array([3, 2]), np.zeros(2, np.bool_), np.zeros(2)
    )  # fmt: skip
    assert texts_of(rows, Prompts(((0,),), ("",)), tokenizer).texts == ("aé", "a")


def test_equal_tokenizers_say_what_ids_say_where_ids_are_canonical(llama: CausalLM) -> None:
    law = llama.law("w5", max_new_tokens=6, block_rows=16)
    rows = law.sample(16, seed=3)
    found = canonical(texts_of(rows, law.prompts, llama.tokenizer), law)
    same = np.array([np.array_equal(rows.row(i), found.rows.row(i)) for i in range(16)])
    assert same.any()
    assert np.allclose(found.log_prob[same], law.log_prob(rows)[same], atol=1e-6)


def test_a_text_longer_than_the_model_and_a_model_without_a_stop(law: CausalLaw) -> None:
    with pytest.raises(StageError, match="text 2 with its prompt exceeds"):
        canonical(texts(("a", True), ("bb" * 80, True)), law)
    endless = law.lm.law(max_new_tokens=4, block_rows=8, stop=[])
    with pytest.raises(StageError, match="no stop token"):
        canonical(texts(("a", True)), endless)
    assert math.isfinite(canonical(texts(("a", False)), endless).log_prob[0])


def test_another_tokenizers_prompts_are_its_own() -> None:
    row = Answered((("user", "ab"),), "text", None, "here")
    one, two = (encoded(part_of([row]), t, False) for t in (pieces(), make_tokenizer(64)))
    assert (one.ids, two.ids) == (((5,),), ((2,),))
    document = Answered((), "text", "ab", "here")
    assert encoded(part_of([document, document]), pieces(), False).ids == ((0,),)
