"""Ids that are not those of the folder's tokenizer.json are told, with an example; those that are raise no alarm."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors  # noqa: E402
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer  # noqa: E402

from hydrometer.models.causal_lm.data.prompts import read_prompts  # noqa: E402
from hydrometer.models.causal_lm.data.tokenizer_file import difference, prompts_differ  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from hydrometer.models.causal_lm.pretrained.existing import find_model  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from tiny import make_llama, make_qwen2  # noqa: E402

SPECIAL = ["<s>", "</s>", "<pad>"]


def bytes_file() -> Tokenizer:
    """Bytes, and merges across them that only a splitting which keeps digits together can use."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("1", "2")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return inner


def pieces_file() -> Tokenizer:
    """As the first Llamas have it: spaces are written into the text, and nothing is split."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a", "\u2581b"]
    merges = [("\u2581", "a"), ("\u2581", "b")]
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    spaces = decoders.Replace("\u2581", " ")
    inner.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    return inner


def write(folder: Path, network: Any, inner: Tokenizer, **config: object) -> Path:
    network.save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def qwen2(folder: Path, inner: Tokenizer | None = None) -> Path:
    network = make_qwen2()
    network.resize_token_embeddings(272)
    return write(folder, network, inner or bytes_file())


def llama(folder: Path, inner: Tokenizer, **config: object) -> Path:
    return write(folder, make_llama(vocab=272, layers=1), inner, **config)


def told(folder: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        CausalLM.from_pretrained(folder)
    return [str(w.message) for w in said]


def chain(folder: Path, prompts: str) -> CausalLMChain:
    return CausalLMChain.model_validate(
        {"truth": {"source": str(folder), "max_new_tokens": 2, "prompts": prompts}, "teacher": "truth",
         "student": {"init": {"layers_of": "truth", "layers": [0]}}, "selectivity": [{"temperature": 1}],
         "data": {"train": 16, "validate": 8, "distill": 16, "evaluate": 16}, "threads": 1, "block_rows": 8}
    )  # fmt: skip


def finding(folder: Path, prompts: str) -> Any:
    return next((f for f in CAUSAL_LM.examine(chain(folder, prompts)) if f.code == "tokenizer-file-differs"), None)


def test_a_class_that_splits_words_otherwise(tmp_path: Path) -> None:
    """Qwen2's takes each digit for itself, whatever the file says; "12" is one token of the file."""
    folder = qwen2(tmp_path / "m")
    (said,) = told(folder)
    assert "Qwen2Tokenizer" in said
    assert "tokenizer.json" in said
    assert "'Rows 12'" in said
    assert "259" in said.partition("there, ")[2]  # the file's token of two digits
    found = finding(folder, "a")  # whose own ids are the same either way
    assert found.severity == "fatal"
    assert said == found.what == find_model(str(folder)).caveat


def test_judge_says_so(tmp_path: Path) -> None:
    folder = qwen2(tmp_path / "m")
    result = judge_models([folder], truth=folder, answers_per_prompt=2, max_new_tokens=2, out=tmp_path / "out")
    notes = result.results["summary"]["chains"]["judge"]["judged"]["notes"]
    assert any("tokenizer.json" in n and n.startswith("m:") for n in notes)


def test_the_files_own_tokenizer_raises_no_alarm(tmp_path: Path) -> None:
    """Templates that add tokens, cuts and padding in the file, and what is saved of a class by the class itself."""
    plain = bytes_file()
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    plain.enable_truncation(3)
    plain.enable_padding(length=7, pad_id=2, pad_token="<pad>")
    lower = bytes_file()
    lower.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    for i, inner in enumerate((bytes_file(), plain, lower, pieces_file())):
        folder = llama(tmp_path / f"m{i}", inner)
        assert told(folder) == []
        assert finding(folder, "a b 12") is None
        assert find_model(str(folder)).caveat is None
    folder = qwen2(tmp_path / "qwen2")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert isinstance(load.outline(load.resolve(str(folder))).tokenizer, Qwen2Tokenizer)
    assert told(folder) == []


def test_a_file_that_is_not_there_is_not_compared(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", bytes_file())
    resolved = load.resolve(str(folder))
    tokenizer = load.outline(resolved).tokenizer
    (folder / "tokenizer.json").unlink()
    again = load.Resolved(resolved.path, None, {"kind": "another"}, "")
    assert difference(again, tokenizer) is None
    assert not prompts_differ(again, tokenizer, read_prompts("a", tokenizer))


def opened(inner: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def of(folder: Path, tokenizer: Any, name: str) -> Any:
    resolved = load.resolve(str(folder))
    return difference(load.Resolved(resolved.path, None, {"kind": name}, ""), tokenizer)


def test_other_normalizers_added_tokens_and_decoders_are_found(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", bytes_file())
    lower, more, other = bytes_file(), bytes_file(), bytes_file()
    lower.normalizer = normalizers.Lowercase()
    found = of(folder, opened(lower), "lower")
    assert found.of == "text"
    assert "'Rows 12'" in found.what
    more.add_tokens([AddedToken("<more>", normalized=False)])
    found = of(folder, opened(more), "more")
    assert found.of == "edges"
    assert "'<more>'" in found.what
    assert of(folder, opened(bytes_file()), "same") is None
    other.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("w", "v")])
    found = of(folder, opened(other), "decoder")
    assert found.of == "decoding"
    assert "'Rovs 12'" in found.what
    assert "'Rows 12'" in found.what


def test_a_token_that_the_file_does_not_know_ends_a_run_that_asks_with_it(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", bytes_file(), pad_token="<|more|>")
    assert finding(folder, "a").severity == "warning"
    assert finding(folder, "a <|more|> b").severity == "fatal"


def test_text_at_an_edge_ends_a_run_where_its_prompts_have_it(tmp_path: Path) -> None:
    """The class of the first Llamas writes no space before text that begins with one; their files do."""
    folder = llama(tmp_path / "m", pieces_file(), tokenizer_class="LlamaTokenizer", unk_token="<unk>")
    assert isinstance(load.outline(load.resolve(str(folder))).tokenizer, LlamaTokenizer)
    (said,) = told(folder)
    assert "' lead'" in said
    calm, struck = finding(folder, "a b"), finding(folder, " a b")
    assert calm.severity == "warning"
    assert "the prompts of this run have the file's ids" in calm.why
    assert struck.severity == "fatal"
