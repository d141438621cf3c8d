"""PEFT adapters: LoRA weights over a base model, merged into it when the weights are read.

An adapter's folder is somebody else's text. Of its config only plain numbers, flags and module names are used, never a
pattern, a module path or a method of initialisation, and the weights are safetensors or nothing. What it names as its
base is opened if that is an alias or a hub id; a path or an address in there is not followed, the caller says which
model is meant. Which modules are adapted, and at which rank, is read from the weights.

    W' = W + s B A,    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`      (Hu et al. 2021)
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydrometer.core.documents import read_json
from hydrometer.core.errors import MissingDependencyError, ModelError
from hydrometer.models.causal_lm import load
from hydrometer.models.causal_lm.vet import FILES, check_files, tensor_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["merged", "resolve_adapter"]

WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1_000_000
_PREFIX = "base_model.model."
_MODULE = re.compile(r"[A-Za-z_][\w.]{0,400}")
_LORA_A = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<kind>A\.weight|embedding_A)")
_TAKEN = ("fan_in_fan_out", "bias", "use_rslora", "use_dora", "lora_bias")
# What would change the merged weights and is not among what is taken: refused where set.
_REFUSED = (
    "megatron_config", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "lora_ga_config",
)  # fmt: skip


def resolve_adapter(folder: Path, base: str | None) -> load.Resolved:
    """Find an adapter's base and check that the adapter fits it, by names and shapes.

    Parameters
    ----------
    folder : holds adapter_config.json and adapter_model.safetensors.
    base : the base as the caller names it, or None for the one that the adapter names.

    Raises
    ------
    ModelError : pickled weights only, another kind of adapter, a base that is not to be followed or does not fit.
    MissingDependencyError : peft is not installed.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            what = "the adapter's weights are pickled, which are never loaded (a pickle runs code)"
            fix = "convert where you trust it: PeftModel.from_pretrained(...).save_pretrained(folder)"
            raise ModelError(what, got=str(folder), fix=fix)
        raise ModelError(f"the adapter's folder holds no {WEIGHTS}", got=str(folder), fix="save it with peft")
    if find_spec("peft") is None:
        raise MissingDependencyError("reading an adapter needs the package peft", fix="pip install 'hydrometer[peft]'")
    tensor_sizes(folder / WEIGHTS)
    check_files({name: folder / name for name in FILES if (folder / name).is_file()}, str(folder))
    named = config.get("base_model_name_or_path")
    under = _base(folder, named, config.get("revision"), base)
    _fits(folder, config, under, str(named))
    whole = hashlib.sha256()
    beside = sorted(f for f in folder.glob("tokenizer*") if f.is_file())
    for file in (folder / load.ADAPTER_CONFIG, folder / WEIGHTS, *beside):
        whole.update(f"{file.name}\0{load.sha256(file)}\n".encode())
    identity = {"kind": "adapter", "sha256": whole.hexdigest(), "base": json.dumps(dict(under.identity))}
    return load.Resolved(str(folder), None, identity, f"{folder.name}, an adapter over {under.description}", under)


def merged(resolved: load.Resolved, base: PreTrainedModel) -> PreTrainedModel:
    """Merge the adapter into its base's weights; `base` is changed and returned. Raises ModelError."""
    import peft
    from safetensors.torch import load_file

    folder = Path(resolved.path)
    config = _config(folder)
    tensors = load_file(folder / WEIGHTS)
    options = _lora(config, {name: tuple(t.shape) for name, t in tensors.items()}, folder)
    wanted = _wanted(str(config.get("base_model_name_or_path")))
    with load.as_model_error(resolved.path, fix=wanted), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers; nobody here can act on it
        model: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **options))
        result: Any = peft.set_peft_model_state_dict(model, tensors)
        unread = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
        if unread:
            raise ValueError(f"{len(unread)} of its weights have no place there, first {unread[0]}")
        plain = cast("PreTrainedModel", model.merge_and_unload())
    # peft remembers itself in the model it changed; what is left is a plain network.
    if hasattr(plain, "peft_config"):
        delattr(plain, "peft_config")
    return plain.eval().requires_grad_(False)


def _config(folder: Path) -> dict[str, Any]:
    fix = "give the folder that peft's save_pretrained wrote"
    try:
        value: object = read_json(folder / load.ADAPTER_CONFIG, MAX_CONFIG_BYTES, unique=True)
    except (OSError, ValueError) as e:
        raise ModelError(f"{load.ADAPTER_CONFIG} cannot be read: {e}", got=str(folder), fix=fix) from None
    if not isinstance(value, dict):
        raise ModelError(f"{load.ADAPTER_CONFIG} holds no configuration", got=str(folder), fix=fix)
    config = cast("dict[str, Any]", value)
    if config.get("peft_type") != "LORA":
        fix = "merge it with peft where it was made, and give the merged model's folder"
        raise ModelError("only LoRA adapters are merged here", got=config.get("peft_type"), fix=fix)
    for key in _REFUSED:
        if config.get(key):
            fix = "merge it with peft where it was made, and give the merged model's folder"
            raise ModelError(f"the adapter uses {key}, which is not read here", got=config[key], fix=fix)
    return config


def _base(folder: Path, named: object, revision: object, base: str | None) -> load.Resolved:
    """Open what the caller names, else what the adapter names if that is no path and no address."""
    if base is not None:
        under = load.resolve(base)
        if under.base is not None:
            raise ModelError("an adapter's base is itself an adapter", got=base, fix="give a whole model as --base")
        return under
    if not isinstance(named, str) or not named:
        what = "the adapter does not say which model it is for"
        raise ModelError(what, got=str(folder), fix="give the base model as --base")
    is_place = named in load.ALIASES or (load.HUB_ID.fullmatch(named) is not None and ".." not in named)
    if not is_place or Path(named).exists():
        what = "the adapter's config names its base by a path or an address, which is not followed"
        raise ModelError(what, got=named, fix="give the base model as --base, if you trust it")
    try:
        return load.resolve(named, revision if isinstance(revision, str) else None)
    except ModelError as e:
        raise ModelError(f"the base that the adapter wants cannot be opened: {e.what}", got=named,
                         fix="give the base model as --base") from None  # fmt: skip


def _wanted(named: str) -> str:
    return f"it was made for {named!r}; give that model as --base"


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the file's header; no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with cast("Any", safe_open)(folder / WEIGHTS, framework="np") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{WEIGHTS} cannot be read: {e}", got=str(folder), fix="save the adapter again") from None


def _lora(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], folder: Path) -> dict[str, Any]:
    """Options of a LoraConfig: what is adapted, and at which rank, from the weights; the rest from the config."""
    factors = [(m, shape) for name, shape in shapes.items() if (m := _LORA_A.fullmatch(name))]
    ranks = {m["module"]: int(shape[0]) for m, shape in factors if len(shape) == 2}
    if not ranks:
        raise ModelError(f"{WEIGHTS} holds no LoRA weights", got=str(folder), fix="save the adapter with peft")
    alpha_of: Any = config.get("alpha_pattern") or {}
    saved: Any = config.get("modules_to_save") or []
    alpha: Any = config.get("lora_alpha", 8)
    plain = isinstance(alpha_of, dict) and isinstance(saved, list)
    names = [*ranks, *cast("dict[Any, Any]", alpha_of), *cast("list[Any]", saved)] if plain else [None]
    numbers = [alpha, *cast("dict[Any, Any]", alpha_of).values()] if plain else []
    if any(not isinstance(n, str) or not _MODULE.fullmatch(n) for n in names):
        what = "the adapter's config names modules by something else than plain names"
        raise ModelError(what, got=str(folder), fix="merge it with peft where it was made")
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ModelError("the adapter's lora_alpha is no number", got=numbers[:3], fix="save the adapter with peft")
    fields = {k: config[k] for k in _TAKEN if config.get(k) is not None}
    if any(not isinstance(v, bool) for k, v in fields.items() if k != "bias") or fields.get("bias", "none") not in (
        "none", "all", "lora_only",
    ):  # fmt: skip
        raise ModelError("the adapter's flags are no flags", got=fields, fix="save the adapter with peft")
    # Keys of the patterns are read as regular expressions by peft: dots are escaped, the rest are word characters.
    return {
        "r": max(ranks.values()),
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{re.escape(name)}": r for name, r in ranks.items()},
        "alpha_pattern": {re.escape(name): a for name, a in cast("dict[str, Any]", alpha_of).items()},
        "modules_to_save": saved or None,
        **fields,
    }


def _fits(folder: Path, config: dict[str, Any], base: load.Resolved, named: str) -> None:
    """Compare the adapter's names and shapes with the base's, by a network without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    shapes = _shapes(folder)
    _lora(config, shapes, folder)
    with load.as_model_error(base.path), torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(load.outline(base).config, trust_remote_code=False)
    modules: dict[str, Any] = dict(network.named_modules())
    for name, shape in shapes.items():
        if not (m := _LORA_A.fullmatch(name)):
            continue
        module = modules.get(m["module"])
        weight: Any = getattr(module, "weight", None)
        # Linear is (out, in) and Conv1D (in, out); an embedding's factor A is (r, ids).
        inner = getattr(module, "in_features", None) or (weight.shape[0] if weight is not None else None)
        if module is None or weight is None or len(shape) != 2 or inner != shape[1]:
            what = f"the adapter does not fit {base.description}: {m['module']} is not there or of another size"
            raise ModelError(what, got=str(folder), fix=_wanted(named))
