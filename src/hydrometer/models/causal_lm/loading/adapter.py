"""PEFT adapters: LoRA weights over a base model, merged into it when the weights are read.

An adapter's folder is untrusted input. Of its config only numbers, flags and module names are used, never a pattern, a
module path or an initialisation method, and weights must be safetensors. The base it names is opened if it is an alias
or a hub id; paths and addresses are not followed, the caller names the base instead. Adapted modules and ranks are read
from the weights; a config that contradicts them is refused.

    W' = W + s B A,    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`      (Hu et al. 2021)
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydrometer.core.errors import MissingDependencyError, ModelError, one_line
from hydrometer.core.io.yaml_io import read_json
from hydrometer.models.causal_lm.loading.checkpoint_safety import FILES, check_files, tensor_shapes
from hydrometer.models.causal_lm.loading.model_files import ADAPTER_CONFIG, Resolved, as_model_error, sha256
from hydrometer.models.causal_lm.loading.weights import Unfit, check_finite, check_kinds, is_tied, untie

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["merged", "over", "read_adapter"]

T = TypeVar("T")

WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1_000_000
_PREFIX = "base_model.model."
_MODULE = re.compile(r"[A-Za-z_][\w.]{0,400}")
_LORA_A = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<kind>A\.weight|embedding_A)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_BIASES = ("none", "all", "lora_only")
_TAKEN = ("fan_in_fan_out", "bias", "use_rslora", "use_dora", "lora_bias")
# Fields that do not affect the merged weights, or are checked individually.
_NEUTRAL = {
    *_TAKEN,
    *"peft_type task_type auto_mapping base_model_name_or_path revision inference_mode peft_version".split(),
    *"r lora_alpha rank_pattern alpha_pattern target_modules exclude_modules modules_to_save".split(),
    *"layers_to_transform layers_pattern lora_dropout megatron_core init_lora_weights ensure_weight_tying".split(),
    *"loftq_config eva_config corda_config qalora_group_size".split(),
}
# Other initialisations change the base's weights, which peft repeats when it opens the adapter.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_MERGE = "merge it with peft where it was made, and give the merged model's folder"


def read_adapter(folder: Path) -> dict[str, Any]:
    """Check an adapter's folder and return its config.

    Parameters
    ----------
    folder : holds adapter_config.json and adapter_model.safetensors.

    Raises
    ------
    ModelError : pickled weights only, another kind of adapter.
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
    _check_fields(config)
    tensor_shapes(folder / WEIGHTS)
    check_files({name: folder / name for name in FILES if (folder / name).is_file()}, str(folder))
    return config


def over(folder: Path, config: dict[str, Any], under: Resolved, outline: PretrainedConfig) -> Resolved:
    """Combine an adapter with its base, whose config is `outline`; names and shapes must fit. Raises ModelError."""
    unties = _fits(folder, config, under, outline)
    whole = hashlib.sha256()
    beside = sorted(f for f in folder.glob("tokenizer*") if f.is_file())
    for file in (folder / ADAPTER_CONFIG, folder / WEIGHTS, *beside):
        whole.update(f"{file.name}\0{sha256(file)}\n".encode())
    identity = {"kind": "adapter", "sha256": whole.hexdigest(), "base": json.dumps(dict(under.identity))}
    if unties:  # keys from before this distinction belong to another model
        identity["head"] = "untied"
    return Resolved(str(folder), None, identity, f"{folder.name}, an adapter over {under.description}", under)


def merged(resolved: Resolved, base: PreTrainedModel) -> PreTrainedModel:
    """Merge the adapter into its base's weights; `base` is changed and returned.

    Tied head and embeddings are untied if the adapter changes one of them: peft adds the factors to one use of the
    matrix only.

    Raises
    ------
    ModelError : its tensors do not fit.
    """
    import peft
    from safetensors.torch import load_file

    folder = Path(resolved.path)
    config = _config(folder)
    tensors = load_file(folder / WEIGHTS)
    options = _lora(config, {name: tuple(t.shape) for name, t in tensors.items()}, folder)
    wanted = _wanted(config)
    check_kinds(folder / WEIGHTS, tensors.keys())
    tied = is_tied(base)
    with as_model_error(resolved.path, fix=wanted), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about cases handled here
        model: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **options))
        result: Any = peft.set_peft_model_state_dict(model, tensors)
        unread = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
        if unread:
            raise ValueError(f"{len(unread)} of its weights have no place there, first {unread[0]}")
        if tied and _touches(base):
            _part(base)
        plain: PreTrainedModel = model.merge_and_unload()
    # peft leaves its config on the model.
    if hasattr(plain, "peft_config"):
        delattr(plain, "peft_config")
    check_finite(plain, resolved.path)
    return plain.eval().requires_grad_(False)


def _touches(network: Any) -> bool:
    """Whether peft has replaced the embeddings or the head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    return any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in ends)


def _part(network: Any) -> None:
    """Give the head its own copy of the embeddings' matrix."""
    import torch
    from peft.utils.other import AuxiliaryTrainingWrapper

    head: Any = network.get_output_embeddings()
    if not isinstance(head, AuxiliaryTrainingWrapper):  # else it already has one
        head = getattr(head, "base_layer", head)
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    untie(network)


def _config(folder: Path) -> dict[str, Any]:
    fix = "give the folder that peft's save_pretrained wrote"
    try:
        value: object = read_json(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES, unique=True)
    except (OSError, ValueError) as e:
        raise ModelError(f"{ADAPTER_CONFIG} cannot be read: {e}", got=str(folder), fix=fix) from None
    if not isinstance(value, dict):
        raise ModelError(f"{ADAPTER_CONFIG} holds no configuration", got=str(folder), fix=fix)
    if value.get("peft_type") != "LORA":
        raise ModelError("only LoRA adapters are merged here", got=value.get("peft_type"), fix=_MERGE)
    return value


def _check_fields(config: dict[str, Any]) -> None:
    """Refuse unsupported fields that would change the merged weights."""
    import peft

    default = vars(peft.LoraConfig())
    for key, value in config.items():
        if key in _NEUTRAL or value in (None, False, "", [], {}):
            continue
        # A number or name in a field of a later peft may be its default.
        known = value == default[key] if key in default else isinstance(value, int | float | str) and value is not True
        if not known:
            raise ModelError(f"the adapter uses {key}, which is not read here", got=value, fix=_MERGE)
    begun = config.get("init_lora_weights")
    if not any(begun is b or (isinstance(b, str) and begun == b) for b in _BEGINNINGS):
        what = "the adapter began by changing its base's weights (init_lora_weights)"
        fix = "save it with peft's path_initial_model_for_weight_conversion, or merge it there and give that folder"
        raise ModelError(what, got=begun, fix=fix)


def _wanted(config: dict[str, Any]) -> str:
    named = str(config.get("base_model_name_or_path"))
    return f"it was made for {named!r}; give that model as --base"


def _lora(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], folder: Path) -> dict[str, Any]:
    """Options of a LoraConfig: modules and ranks from the weights, the rest from the config."""
    factors = [(m, shape) for name, shape in shapes.items() if (m := _LORA_A.fullmatch(name))]
    ranks = {m["module"]: int(shape[0]) for m, shape in factors if len(shape) == 2}
    if not ranks:
        raise ModelError(f"{WEIGHTS} holds no LoRA weights", got=str(folder), fix="save the adapter with peft")
    _check_ranks(config, ranks)
    alpha_of: Any = config.get("alpha_pattern") or {}
    saved: Any = config.get("modules_to_save") or []
    alpha: Any = config.get("lora_alpha", 8)
    plain = isinstance(alpha_of, dict) and isinstance(saved, list)
    names = [*ranks, *alpha_of, *saved] if plain else [None]
    numbers = [alpha, *alpha_of.values()] if plain else []
    if any(not isinstance(n, str) or not _MODULE.fullmatch(n) for n in names):
        what = "the adapter's config names modules by something else than plain names"
        raise ModelError(what, got=str(folder), fix="merge it with peft where it was made")
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ModelError("the adapter's lora_alpha is no number", got=numbers[:3], fix="save the adapter with peft")
    fields = {k: config[k] for k in _TAKEN if config.get(k) is not None}
    flags = [v for k, v in fields.items() if k != "bias"]
    if not all(isinstance(v, bool) for v in flags) or fields.get("bias", "none") not in _BIASES:
        raise ModelError("the adapter's flags are no flags", got=fields, fix="save the adapter with peft")
    # peft reads the patterns' keys as regular expressions: dots are escaped, the rest are word characters.
    return {
        "r": max(ranks.values()),
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{re.escape(name)}": r for name, r in ranks.items()},
        "alpha_pattern": {re.escape(name): a for name, a in alpha_of.items()},
        "modules_to_save": saved or None,
        **fields,
    }


def _check_ranks(config: dict[str, Any], ranks: dict[str, int]) -> None:
    """Refuse factors whose rank differs from the config's, as the divisor of alpha would be ambiguous.

    Keys of a rank_pattern that are not plain names are not evaluated: any of its ranks is accepted.
    """
    pattern: Any = config.get("rank_pattern") or {}
    by_name: dict[str, Any] = pattern if isinstance(pattern, dict) else {"": pattern}
    usual, plain = config.get("r", 8), all(_MODULE.fullmatch(n) for n in by_name)  # peft's default
    for module, rank in sorted(ranks.items()):
        own = [r for name, r in by_name.items() if not plain or _ends(module, [name])]
        said = [*own, usual] if not plain else [own[0] if own else usual]
        if not any(type(r) is int and r == rank for r in said):
            what = f"the factors of {one_line(module, 100)} have rank {rank}, the adapter's config says another"
            raise ModelError(what, got=said[:3], fix="save the adapter again with peft's save_pretrained")


def _fits(folder: Path, config: dict[str, Any], base: Resolved, outline: PretrainedConfig) -> bool:
    """Compare the adapter's names and shapes with those of peft over the base, on a network without weights.

    Returns
    -------
    Whether merging unties head and embeddings.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    shapes = tensor_shapes(folder / WEIGHTS)
    options = _lora(config, shapes, folder)
    with as_model_error(base.path), torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(outline, trust_remote_code=False)
    modules: dict[str, Any] = dict(network.named_modules())
    plain = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    ends = {n for n, m in modules.items() if m in (network.get_input_embeddings(), network.get_output_embeddings())}
    tied = is_tied(network)
    adapted: set[str] = set(options["target_modules"])
    saved: list[str] = options["modules_to_save"] or []
    strange = sorted(adapted - modules.keys())
    unfit = Unfit((), tuple(f"{_PREFIX}{n}.lora_A" for n in strange))
    if not unfit:
        with as_model_error(str(folder), fix=_wanted(config)), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            lora = peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **options)
            model: Any = peft.get_peft_model(network, lora)
            state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        needed = {name: tuple(t.shape) for name, t in state.items()}
        needed |= {k: shape for k, shape in _embeddings(plain, ends).items() if k in shapes}
        aimed = _aimed(config, modules, adapted, saved)
        absent, beside = ({f"{_PREFIX}{n}.lora_A" for n in names} for names in (aimed - adapted, adapted - aimed))
        unfit = Unfit(
            tuple(sorted({*(needed.keys() - shapes.keys()), *absent})),
            tuple(sorted({*(shapes.keys() - needed.keys()), *beside})),
            tuple((k, shapes[k], needed[k]) for k in sorted(shapes.keys() & needed.keys()) if shapes[k] != needed[k]),
        )
    if unfit:
        only_missing = not unfit.unexpected and not unfit.mismatched
        fix = "save the adapter again with peft's save_pretrained" if only_missing else _wanted(config)
        raise ModelError(f"the adapter does not fit {base.description}: {unfit}", got=str(folder), fix=fix)
    unties = tied and _touches(network)
    if unties and config.get("ensure_weight_tying"):
        what = "the adapter keeps head and embeddings one matrix (ensure_weight_tying), which is not read here"
        raise ModelError(what, got=str(folder), fix=_MERGE)
    return unties


def _embeddings(plain: dict[str, tuple[int, ...]], ends: set[str]) -> dict[str, tuple[int, ...]]:
    """Other names under which peft may have saved the base's head and embeddings."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in plain.items():
        module, _, last = name.rpartition(".")
        if module in ends:
            found |= {f"{_PREFIX}{name}": shape, f"{_PREFIX}{module}.base_layer.{last}": shape}
    return found


def _aimed(config: dict[str, Any], modules: dict[str, Any], adapted: set[str], saved: list[str]) -> set[str]:
    """Modules that the config targets, as peft reads it; for a pattern, those like the adapted ones.

    A pattern is untrusted and not evaluated. Then every module of an adapted kind is expected, in every layer with an
    adapted module.
    """
    aims, spared = _list_of(config.get("target_modules"), str), _list_of(config.get("exclude_modules"), str)
    lists = config.get("layers_pattern")
    lists = _list_of([lists] if isinstance(lists, str) and _MODULE.fullmatch(lists) else lists, str)
    where = config.get("layers_to_transform")
    chosen = _list_of([where] if isinstance(where, int) else where, int)
    if not aims or spared is None or chosen is None or lists is None or not all(_MODULE.fullmatch(n) for n in lists):
        kinds, layers = {_NUMBER.sub("*", n) for n in adapted}, {_layer(n, []) for n in adapted}
        return {n for n in modules if _NUMBER.sub("*", n) in kinds and _layer(n, []) in layers}
    return {
        n
        for n in modules
        if _ends(n, aims)
        and not _ends(n, spared)
        and not any(f".{s}." in f".{n}." for s in saved)
        and (n in aims or not chosen or _layer(n, lists) in chosen)
    }


def _list_of(value: object, kind: type[T]) -> list[T] | None:
    """Return a list whose entries are all of a kind, empty for None; else None."""
    if not isinstance(value, list):
        return [] if value is None else None
    entries: list[object] = value
    found = [e for e in entries if isinstance(e, kind)]
    return found if len(found) == len(entries) else None


def _ends(name: str, names: list[str]) -> bool:
    return any(f".{name}".endswith(f".{n}") for n in names)


def _layer(name: str, lists: list[str]) -> int | None:
    """A module's layer: the first number after one of these names, or after any name."""
    for before, part in pairwise(name.split(".")[:-1]):
        if part.isdigit() and (not lists or before in lists):
            return int(part)
    return None
