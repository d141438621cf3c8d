"""Folders and files of models that mean harm: nothing in them runs, and nothing they claim is believed unchecked."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from hydrometer.core.errors import InputError, ModelError
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.gguf_header import check_gguf
from hydrometer.models.causal_lm.pretrained.adopt import identify
from hydrometer.models.causal_lm.pretrained.existing import find_model

DOORS: list[Callable[[str], object]] = [load.resolve, identify, find_model]


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def folder(deep_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deep_model, tmp_path / "model"))


def _edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_never_opened(door: Any, name: str, folder: Path, tmp_path: Path, line_of: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(ModelError) as caught:
        door(str(folder))
    assert "save_pretrained" in line_of(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin"])
def test_a_pickle_given_as_a_file_or_beside_weights_is_not_opened(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(ModelError, match="GGUF"):
        load.resolve(str(folder / name))
    load.read_weights(load.resolve(str(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "shard", ["evil.bin", "../model/model.safetensors", "/etc/x.safetensors", 7, ["model.safetensors"]]
)
def test_an_index_names_safetensors_beside_it(shard: object, folder: Path, tmp_path: Path, line_of: Any) -> None:
    (folder / "evil.bin").write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert "beside it" in line_of(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_of_a_model_never_runs(file: str, folder: Path, tmp_path: Path, line_of: Any) -> None:
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    names = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoTokenizer": ["evil.C", None]}
    _edit(folder / file, auto_map=names)
    if file == "config.json":
        _edit(folder / file, model_type="evil")
    try:
        resolved = load.resolve(str(folder))
        load.outline(resolved)
        load.read_weights(resolved)
    except ModelError as e:
        line_of(e)
    else:
        assert file != "config.json"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"hidden_size": 10**9}, "hidden_size"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"num_hidden_layers": 4000}, "4000 layers"),
        ("config.json", {"vocab_size": 2**40}, "vocab_size"),
        ("config.json", {"vocab_size": 2**25}, "weights hold less"),
        ("config.json", {"hidden_size": -1}, "hidden_size"),
        ("config.json", {"num_attention_heads": 0}, "num_attention_heads"),
        ("config.json", {"intermediate_size": float("nan")}, "NaN"),
        ("config.json", {"rms_norm_eps": float("nan")}, "NaN"),
        ("config.json", {"head_dim": "8"}, "head_dim"),
        ("config.json", {"text_config": {"hidden_size": 10**12}}, "hidden_size"),
        ("config.json", {"_attn_implementation": "evil/kernel"}, "names code"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "names code"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "outside"),
        ("tokenizer_config.json", {"tokenizer_file": "../../x"}, "outside"),
    ],
)
def test_what_a_folder_claims_is_checked(
    file: str, fields: dict[str, Any], said: str, folder: Path, line_of: Any
) -> None:
    _edit(folder / file, **fields)
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert said in line_of(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "llama", "model_type": "gpt2"}', "there twice"),
        ("[" * 100_000, "nested"),
        ("[]", "no object"),
        ("{", "cannot be used"),
        (" " * 11_000_000, "larger than"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "cannot be used"),
    ],
)
def test_a_config_that_is_none(text: str, said: str, folder: Path, line_of: Any) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert said in line_of(caught.value)


def _tensors(header: object, data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff" * 7, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 90_000_000),
        struct.pack("<Q", 3) + b"[1]",
        struct.pack("<Q", 40) + b"[" * 40,
        _tensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"),
        _tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, b"1234"),
        _tensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        _tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        _tensors({"a": 7}),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_cannot_be(content: bytes, folder: Path, line_of: Any) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert "not sound" in line_of(caught.value)


# GGUF ----------------------------------------------------------------------------------------------------------------


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _number(key: bytes, value: int) -> bytes:
    return _text(key) + struct.pack("<II", 4, value)


def _tensor(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _gguf(tensors: list[bytes], keys: list[bytes], *, n: int | None = None, k: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors) if n is None else n, len(keys) if k is None else k)
    body = head + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + bytes(64)


def test_a_sound_header_passes(tmp_path: Path) -> None:
    keys = [_number(b"llama.block_count", 1), _text(b"a") + struct.pack("<IIQ", 9, 8, 2) + _text(b"x") + _text(b"y")]
    (tmp_path / "a.gguf").write_bytes(_gguf([_tensor(b"t", [4]), _tensor(b"u", [8], offset=32)], keys))
    check_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be opened"),
        (b"GGUF", "ends before"),
        (b"PK\x03\x04" * 10, "begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 99, 1, 0), "version 99"),
        (_gguf([], [], n=2**60), "tensors"),
        (_gguf([], [], n=10**6), "cannot be opened"),
        (_gguf([_tensor(b"t", [4])], [], k=2**60), "keys"),
        (_gguf([_tensor(b"t", [2**33, 2**33])], []), "larger than the file"),
        (_gguf([_tensor(b"t", [2**63, 2**63])], []), "larger than the file"),
        (_gguf([_tensor(b"t", [4], offset=2**60)], []), "larger than the file"),
        (_gguf([_tensor(b"t", [0])], []), "shape"),
        (_gguf([_tensor(b"t", [33], kind=2)], []), "shape"),
        (_gguf([_tensor(b"t", [4], kind=12345)], []), "type"),
        (_gguf([_tensor(b"t", [4], offset=7)], []), "offset"),
        (_gguf([_tensor(b"t", [4]), _tensor(b"u", [4])], []), "one place"),
        (_gguf([_tensor(b"t", [4]), _tensor(b"t", [4], offset=32)], []), "twice"),
        (_gguf([_tensor(b"t", [1] * 9)], []), "dimensions"),
        (_gguf([_tensor(b"t", [4])], [_number(b"general.alignment", 0)]), "alignment"),
        (_gguf([_tensor(b"t", [4])], [_number(b"general.alignment", 12)]), "alignment"),
        (_gguf([_tensor(b"t", [4])], [_number(b"llama.block_count", 10**9)]), "block_count"),
        (_gguf([_tensor(b"t", [4])], [_number(b"llama.embedding_length", 0)]), "embedding_length"),
        (_gguf([_tensor(b"t", [4])], [_number(b"a", 1), _number(b"a", 1)]), "twice"),
        (_gguf([_tensor(b"t", [4])], [struct.pack("<Q", 2**62)]), "bytes"),
        (_gguf([_tensor(b"t", [4])], [_text(b"a") + struct.pack("<IIQ", 9, 8, 2**60)]), "cannot be opened"),
        (_gguf([_tensor(b"t", [4])], [_text(b"a") + struct.pack("<IIQ", 9, 4, 2**62)]), "ends before"),
        (_gguf([_tensor(b"t", [4])], [_text(b"a") + struct.pack("<IIQ", 9, 9, 2)]), "array"),
        (_gguf([_tensor(b"t", [4])], [_text(b"a") + struct.pack("<I", 77)]), "type 77"),
        (
            _gguf([_tensor(b"t", [4])], [_text(b"llama.block_count") + struct.pack("<IIQI", 9, 4, 1, 10**9)]),
            "block_count is",
        ),
        (_gguf([_tensor(b"t", [4])], [_text(b"llama.block_count") + struct.pack("<If", 6, 1e9)]), "no whole number"),
        (_gguf([_tensor(b"t", [4])], [_text(b"a.nextn_predict_layers") + struct.pack("<Ii", 5, -(10**9))]), "nextn"),
        (_gguf([_tensor(b"t", [4])], [_number(b"a.expert_count", 2**20)]), "expert_count"),
        (
            _gguf([_tensor(b"t", [4])], [_text(b"a") + struct.pack("<IIQ", 9, 0, 9_000_000) + bytes(9_000_000)]),
            "numbers",
        ),
    ],
)
def test_a_gguf_header_that_cannot_be(content: bytes, said: str, tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load.resolve(str(tmp_path / "a.gguf"))
    assert said in line_of(caught.value)


def test_every_cut_and_every_flip_of_a_header_is_refused_or_read(tmp_path: Path) -> None:
    whole = _gguf([_tensor(b"t", [4]), _tensor(b"u", [8], offset=32)], [_number(b"llama.block_count", 1)])
    file = tmp_path / "a.gguf"
    for i in range(len(whole) - 64):
        for content in (whole[:i], whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :]):
            file.write_bytes(content)
            with contextlib.suppress(ModelError):
                check_gguf(file)


# what transformers reads elsewhere, or fails over ---------------------------------------------------------------------


PADDED = {"padding": "x" * 2000, "": "evil/kernel"}


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"configuration_files": ["config.1.0.0.json"]}, "configuration_files"),
        ("config.json", {"attribute_map": {"a": "num_hidden_layers"}, "a": 10**9}, "attribute_map"),
        ("config.json", {"text_config": {"attribute_map": {}}}, "attribute_map"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.1.0.0.json"]}, "fast_tokenizer_files"),
        ("config.json", {"attn_implementation": PADDED}, "names code"),
        ("config.json", {"experts_implementation": {"text_config": ["evil/kernel"]}}, "names code"),
        ("config.json", {"_attn_implementation_internal": "evil/kernel"}, "names code"),
        ("config.json", {"model_type": "bart", "decoder_layers": 10**9}, "decoder_layers"),
        ("config.json", {"model_type": ["llama"], "auto_map": {"AutoConfig": "evil.A"}}, "code of its own"),
    ],
)
def test_a_folder_does_not_send_its_reader_elsewhere(
    file: str, fields: dict[str, Any], said: str, folder: Path, line_of: Any
) -> None:
    _edit(folder / file, **fields)
    shutil.copy(folder / "config.json", folder / "config.1.0.0.json")
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert said in line_of(caught.value)


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"vocab_size": [64]}),
        ("config.json", {"rms_norm_eps": "x"}),
        ("config.json", {"hidden_act": 7}),
        ("config.json", {"rope_parameters": {"rope_type": "nobody's"}}),
        ("config.json", {"quantization_config": {"quant_method": "nobody's"}}),
        ("generation_config.json", {"max_new_tokens": -1}),
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": [1, None]}),
        ("tokenizer_config.json", {"tokenizer_class": ["x"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": 1}}),
    ],
)
def test_fields_of_another_kind_are_one_line(file: str, fields: dict[str, Any], folder: Path, line_of: Any) -> None:
    _edit(folder / file, **fields)
    try:
        find_model(str(folder))
        load.read_weights(load.resolve(str(folder)))
    except ModelError as e:
        line_of(e)


def test_weights_that_are_a_pipe_are_not_waited_for(folder: Path, line_of: Any) -> None:
    os.mkfifo(folder / "more.safetensors")
    with pytest.raises(ModelError) as caught:
        load.resolve(str(folder))
    assert "no plain file" in line_of(caught.value)


def test_a_tokenizer_without_tokens(folder: Path, line_of: Any) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"], whole["added_tokens"] = {}, []
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError) as caught:
        find_model(str(folder))
    line_of(caught.value)


LAW = {"version": 1, "prompt_ids": [[3]], "prompt_texts": ["w3"], "stop_ids": [1], "max_new_tokens": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": [[10**6]]}, {"prompt_ids": [[-1]]}, {"stop_ids": [2**40]}, {"max_new_tokens": 10**15},
        {"max_new_tokens": 0}, {"prompt_ids": 1}, {"prompt_texts": []},
    ],
)  # fmt: skip
def test_what_a_model_brings_along_is_checked(change: dict[str, Any], folder: Path, line_of: Any) -> None:
    (folder / "law.json").write_text(json.dumps(LAW))
    own = find_model(str(folder)).own
    assert own is not None
    assert own.max_new_tokens == 4
    (folder / "law.json").write_text(json.dumps(LAW | change))
    with pytest.raises(ModelError) as caught:
        find_model(str(folder))
    assert "law.json" in line_of(caught.value)


def test_a_user_that_is_nobody_is_no_traceback(line_of: Any) -> None:
    for door in DOORS:
        with pytest.raises(ModelError) as caught:
            door("~no-user-of-this-machine/model")
        assert "no such model" in line_of(caught.value)


# the hub --------------------------------------------------------------------------------------------------------------


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, and no hub to ask."""
    import huggingface_hub.constants

    snapshot = tmp_path / "hub" / "models--somebody--model" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub" / "models--somebody--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--somebody--model" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_model_of_the_hub_is_known_by_its_commit(hub: Path) -> None:
    resolved = load.resolve("somebody/model")
    assert resolved.identity == {"kind": "hub", "id": "somebody/model", "commit": COMMIT}
    assert load.resolve("somebody/model", COMMIT).identity == resolved.identity
    assert load.outline(resolved).generation_config is not None
    assert load.read_weights(resolved).config.num_hidden_layers == 30
    (hub / "generation_config.json").unlink()
    assert load.outline(resolved).generation_config.eos_token_id == 1


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"_attn_implementation": "evil/kernel"}, "names code"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.A"}}, "code of its own"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "outside"),
        ("generation_config.json", {"max_new_tokens": -1}, "cannot be opened"),
    ],
)
def test_a_model_of_the_hub_is_checked_as_a_folder_is(
    file: str, fields: dict[str, Any], said: str, hub: Path, line_of: Any
) -> None:
    _edit(hub / file, **fields)
    with pytest.raises(ModelError) as caught:
        find_model("somebody/model")
    assert said in line_of(caught.value)


def test_an_adapter_of_the_hub_leads_nowhere(hub: Path, folder: Path, line_of: Any) -> None:
    (hub / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)}))
    with pytest.raises(ModelError) as caught:
        load.resolve("somebody/model")
    assert "adapter" in line_of(caught.value)


def test_a_hub_that_does_not_answer_has_not_said_that_a_file_is_missing(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop set is in generation_config.json: without it the law is another one."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    said: list[Exception] = [LocalEntryNotFoundError("no connection"), EntryNotFoundError("no such file")]

    def download(source: str, name: str, **_: object) -> str:
        raise said.pop(0)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert load._hub_file("somebody/model", "config.json", COMMIT) == hub / "config.json"
    with pytest.raises(LocalEntryNotFoundError):
        load._hub_file("somebody/model", "more.json", COMMIT)
    assert load._hub_file("somebody/model", "more.json", COMMIT) is None


# what a library prints, and where it gives up -----------------------------------------------------------------------


def test_what_a_library_logs_of_a_model_does_not_reach_the_terminal(folder: Path, capfd: Any, line_of: Any) -> None:
    _edit(folder / "config.json", use_return_dict="\x1b]0;evil\x07")  # a property that cannot be set
    with pytest.raises(ModelError) as caught:
        load.outline(load.resolve(str(folder)))
    line_of(caught.value)
    assert "evil" not in "".join(capfd.readouterr())


def _with(folder: Path, **parts: object) -> Path:
    """The model, with other parts of its tokenizer."""
    _edit(folder / "tokenizer.json", **parts)
    return folder


def test_a_tokenizer_over_which_rust_panics(folder: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any) -> None:
    """A panic is no Exception, and would end a run with all that it has still to do."""
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.inference.retokenize import canonical, texts_of

    monkeypatch.setenv("RUST_BACKTRACE", "0")  # symbols take seconds to find
    with pytest.raises(ModelError) as caught:
        find_model(str(_with(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": ""})))
    line_of(caught.value)
    tokenizer = find_model(
        str(_with(folder, normalizer=None, pre_tokenizer={"type": "FixedLength", "length": 0}))
    ).tokenizer
    with pytest.raises(InputError) as refused:
        read_prompts("w3", tokenizer)
    assert "tokenizer refuses" in line_of(refused.value)
    spaces = {"type": "WhitespaceSplit"}
    same = {"type": "Replace", "pattern": {"Regex": "."}, "content": "w"}
    longer = {"type": "Strip", "content": "w", "start": 0, "stop": 99}
    _with(folder, pre_tokenizer=spaces, decoder={"type": "Sequence", "decoders": [same, longer]})
    lm = CausalLM.from_pretrained(folder, device="cpu")
    law = lm.law("w3", max_new_tokens=3, block_rows=2)
    with pytest.raises(InputError) as refused:
        texts_of(law.sample(2, seed=0), law.prompts, lm.tokenizer)
    assert "tokenizer refuses" in line_of(refused.value)
    _with(folder, pre_tokenizer=spaces, decoder=None)
    whole = texts_of(law.sample(2, seed=0), law.prompts, find_model(str(folder)).tokenizer)
    _with(folder, pre_tokenizer={"type": "FixedLength", "length": 0}, decoder=None)
    with pytest.raises(InputError) as refused:
        canonical(whole, CausalLM.from_pretrained(folder, device="cpu").law(None, max_new_tokens=3, block_rows=2))
    assert "tokenizer refuses" in line_of(refused.value)
