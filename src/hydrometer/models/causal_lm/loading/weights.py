"""Open a network only if every tensor is accounted for: none missing, none unexpected.

transformers initialises missing tensors at random and drops unknown ones, with a warning that is easily missed. Both
are refused here, and so are tensors of another shape, of integers, or with NaN. Allowed are tied weights that are saved
once, keys that a class of transformers ignores, and saved buffers that are now computed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import ModelError, one_line
from hydrometer.models.causal_lm.loading.model_files import as_model_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Unfit", "check_finite", "check_kinds", "check_read", "is_tied", "open_network", "untie"]

_NAMED = 3  # names of each kind in a message
# Computed from the config; saved by older releases or by the model's authors.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|original_inv_freq|masked_bias|position_ids|cos_cached|sin_cached)$")
_ADAPTER = re.compile(r"(^|\.)(lora_|base_layer\.|modules_to_save\.)")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|nested_\w+|quant_state\.\w+|weight_format"
    r"|(weight|input)_scale(_inv|_2)?|weight_(packed|shape|zero_point|scale)|k_scale|v_scale)(\.|$)"
)
# In a GGUF file: experts and heads, which are loaded separately, and factors of the rotary embedding, which have no
# effect if they are one.
_ELSEWHERE = re.compile(r"_(exps|projs)\.|^output\.weight$")
_FACTORS = "rope_freqs.weight"
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Unfit:
    """Mismatch between the tensors of a file and of a network; sorted names.

    Attributes
    ----------
    missing : in the network, not in the file.
    unexpected : in the file, not in the network.
    mismatched : name, shape in the file, shape in the network.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {how} ({_few(names)})"
            for names, how in ((self.missing, "missing"), (self.unexpected, "not the network's"))
            if names
        ]
        if self.mismatched:
            shapes = [f"{name}: {list(here)} where {list(wanted)} is needed" for name, here, wanted in self.mismatched]
            parts.append(f"{len(shapes)} of another shape ({_few(shapes)})")
        return ", ".join(parts)


def open_network(source: str, *, told: str | None = None, **options: Any) -> PreTrainedModel:
    """Open a network in float32 on the CPU, with all its weights from the file.

    Parameters
    ----------
    source : folder or hub id.
    told : name of the model in messages, if not `source`.
    options : of `from_pretrained`.

    Raises
    ------
    ModelError : transformers cannot open it, tensors are missing, unexpected or of another shape, or their numbers are
        integers, NaN or infinite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    told = told or source
    with as_model_error(told):
        opened: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
        network, found = opened
        unfit = Unfit(
            tuple(sorted(found["missing_keys"])),
            tuple(sorted(k for k in found["unexpected_keys"] if not _is_computed(k, network))),
            tuple(sorted((name, tuple(here), tuple(wanted)) for name, here, wanted in found["mismatched_keys"])),
        )
        if unfit:
            what = f"the weights are not the network's: {unfit}"
            raise ModelError(what, got=told, fix=_remedy(unfit, network))
        if Path(source).is_dir() and getattr(network, "hf_quantizer", None) is None:
            names = {name for name, _ in network.named_parameters()}
            for file in sorted(Path(source).glob("*.safetensors")):
                check_kinds(file, names)
        check_finite(network, told)
        if not is_tied(network) and getattr(network.config, "tie_word_embeddings", False):
            # The file has its own head, which is used: configs saved or built from this network must say so.
            untie(network)
    return network


def check_kinds(file: Path, names: Collection[str]) -> None:
    """Refuse weights that a safetensors file does not hold as floating-point numbers.

    Integers are quantised weights without their scales; converted to float32 they are wrong.

    Parameters
    ----------
    names : of floating-point weights, besides all names that end in .weight.

    Raises
    ------
    ModelError : it names the first of them.
    """
    from safetensors import safe_open

    with safe_open(file, framework="np") as f:
        for name in f.keys():
            if not (name in names or name.endswith(".weight")):
                continue
            kind = str(f.get_slice(name).get_dtype())
            if not kind.startswith(("F", "BF")):
                what = f"the weights are no floating-point numbers: {one_line(name, 100)} is {kind}"
                raise ModelError(what, got=str(file), fix="give the original weights, or save them dequantised")


def check_finite(network: PreTrainedModel, told: str) -> None:
    """Refuse weights that are NaN or infinite. Raises ModelError, which names them."""
    import torch

    bad = [
        name
        for name, p in network.named_parameters()
        if p.numel()
        and p.dtype.itemsize > 1
        and not p.is_meta
        and not torch.stack(p.detach().aminmax()).isfinite().all()
    ]
    if bad:
        count = "1 tensor of the weights holds" if len(bad) == 1 else f"{len(bad)} tensors of the weights hold"
        what = f"{count} NaN or infinity ({_few(bad)})"
        raise ModelError(what, got=told, fix="fetch the model again, or give a checkpoint from before it diverged")


def check_read(file: Path, network: PreTrainedModel) -> None:
    """Refuse a GGUF file of which transformers silently ignores a part.

    Raises
    ------
    ModelError : an unread tensor, or a scaled rotary embedding that is read as a plain one.
    """
    from gguf import GGUFReader

    fix = "give the original weights: transformers does not read this of a GGUF file"
    with as_model_error(str(file)):
        reader: Any = GGUFReader(str(file))
        kind = str(reader.fields["general.architecture"].contents())
        said: dict[str, Any] = {k: v.contents() for k, v in reader.fields.items() if ".rope.scaling." in k}
        scaling, factor = (said.get(f"{kind}.rope.scaling.{k}") for k in ("type", "factor"))
        unread = _unread(reader, kind, network)
    rope: Any = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    if scaling not in (None, "none") and factor != 1 and rope.get("rope_type", "default") == "default":
        what = "the file scales its rotary embedding, and the network that transformers makes of it does not"
        raise ModelError(what, got=scaling, fix=fix)
    if unread:
        raise ModelError(f"the weights are not the network's: {Unfit((), unread)}", got=str(file), fix=fix)


def _unread(reader: Any, kind: str, network: PreTrainedModel) -> tuple[str, ...]:
    if getattr(getattr(network, "hf_quantizer", None), "supported", False):
        return ()  # read by transformers' newer loader, whose report `open_network` has seen
    from transformers import modeling_gguf_pytorch_utils as loader

    processor: Any = loader.TENSOR_PROCESSORS.get(kind, loader.TensorProcessor)
    read: Any = loader.get_gguf_hf_weights_map(network, processor(config=network.config.to_dict()))
    left = [t for t in reader.tensors if t.name not in read and not _ELSEWHERE.search(t.name)]
    return tuple(sorted(str(t.name) for t in left if t.name != _FACTORS or bool((t.data != 1).any())))


def is_tied(network: Any) -> bool:
    """Whether head and embeddings are one matrix."""
    one, other = network.get_input_embeddings(), network.get_output_embeddings()
    return other is not None and getattr(other, "weight", None) is getattr(one, "weight", ...)


def untie(network: PreTrainedModel) -> None:
    """Record in the config that head and embeddings are separate matrices."""
    config: Any = network.config
    for part in (config, config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    network.all_tied_weights_keys = {}


def _is_computed(name: str, network: PreTrainedModel) -> bool:
    """Whether a tensor is a buffer that the network computes itself."""
    if _COMPUTED.search(name):
        return True
    kept = network.state_dict().keys()
    computed = {n for n, _ in network.named_buffers()} - kept
    return name in computed or f"{network.base_model_prefix}.{name}" in computed


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(one_line(n, 100) for n in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown}, ..."


def _remedy(unfit: Unfit, network: PreTrainedModel) -> str:
    """Return advice for known patterns of mismatch."""
    missing, unexpected = set(unfit.missing), unfit.unexpected
    if any(_ADAPTER.search(k) for k in unexpected):
        return "merge the adapter where it was made (model.merge_and_unload()), and save the merged model"
    if any(_QUANTISED.search(k) for k in unexpected):
        return "save the model with its weights dequantised, or give the original weights"
    if (wrapper := _wrapper(missing, unexpected)) is not None:
        return f"take {wrapper!r} out of the names: save the model that was wrapped, not its wrapper"
    output = network.get_output_embeddings()
    head = next((name for name, m in network.named_modules() if m is output), None)
    if not unexpected and not unfit.mismatched and missing <= {f"{head}.weight", f"{head}.bias"}:
        return "save it with its head; where the head is the embeddings, set tie_word_embeddings to true in config.json"
    layers = getattr(network.config.get_text_config(), "num_hidden_layers", None)
    numbers = [int(m[1]) for k in (*unexpected, *missing) if (m := _LAYER.search(k))]
    if isinstance(layers, int) and numbers and len(numbers) == len(missing) + len(unexpected):
        if not missing and min(numbers) >= layers:
            return f"correct num_hidden_layers in config.json: it says {layers}, the file holds {max(numbers) + 1}"
        if not unexpected and min(numbers) and set(numbers) == set(range(min(numbers), layers)):
            return f"correct num_hidden_layers in config.json: it says {layers}, the file holds {min(numbers)}"
    if all(k.endswith(".bias") for k in (*missing, *unexpected)) and not unfit.mismatched:
        return "correct the fields of config.json that say which matrices have a bias, such as attention_bias"
    if unfit.mismatched:
        return "correct the sizes in config.json, or give the weights that it was written for"
    return "save the model again with save_pretrained, with the config that it was trained with"


def _wrapper(missing: Collection[str], unexpected: Sequence[str]) -> str | None:
    """Find a wrapper's prefix in the names: text without which most unexpected names equal missing ones."""
    found: Counter[str] = Counter()
    for name in unexpected:
        parts = name.split(".")
        for i in range(len(parts)):
            for j in range(i + 1, min(i + 4, len(parts))):
                if ".".join(parts[:i] + parts[j:]) in missing:
                    found[".".join(parts[i:j]) + "."] += 1
    if found and (most := max(found.values())) >= min(len(unexpected), len(missing)) / 2:
        return min((k for k, n in found.items() if n == most), key=len)
    return None
