"""What a fit trains, beside the float32 network of the law that is scored and stored.

They are one network, unless weights are rounded (to bfloat16 after every step, or from float32 master weights that the
optimizer steps: Micikevicius et al. 2018), or adapters are trained in their place (Hu et al. 2021):

    W' = W + s B A,    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`

The law's network holds W', merged in float32, so that every law is a plain network wherever it is opened. The adapter
is stored in a folder beside it, and its base too where the base has no name.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Generator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hydrometer.core.errors import MissingDependencyError, SpecError
from hydrometer.core.io.yaml_io import user_path
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.level_spec import LevelSpec
from hydrometer.models.causal_lm.loading.adapter import WEIGHTS
from hydrometer.models.causal_lm.loading.model_files import ADAPTER_CONFIG, quiet
from hydrometer.models.causal_lm.networks.network import Network
from hydrometer.models.causal_lm.spec import FromSource
from hydrometer.models.causal_lm.training_spec import Lora

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "ADAPTER",
    "BASE",
    "Adapted",
    "MasterWeights",
    "Optimised",
    "adapter_parameters",
    "attached",
    "check_adapters",
    "optimised",
    "recomputing",
    "rounded",
]

ADAPTER, BASE = "adapter", "base"
"""Folders beside a stored model: its adapter, and what the adapter is over."""


@contextlib.contextmanager
def optimised(lm: CausalLM, level: LevelSpec, seed: int) -> Generator[Optimised]:
    """Make what the loop trains; on exit the law's network is as any other. As `check_adapters` raises."""
    training, dtype = level.training, getattr(torch, level.training.torch_dtype)
    if training.master_weights:
        own = MasterWeights(lm, dtype)
    elif training.lora is None:
        own = Optimised(lm, dtype)
    else:
        named = level.init if isinstance(level.init, FromSource) else None
        own = Adapted(lm, training.lora, dtype, seed, named)
    with recomputing(own.trained.model) if training.gradient_checkpointing else contextlib.nullcontext():
        yield own


@contextlib.contextmanager
def recomputing(model: PreTrainedModel) -> Generator[None]:
    """Have a network forget its layers' activations and compute them again."""
    network: Any = model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # later releases also have another name for it
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            network.gradient_checkpointing_disable()


def _found(source: str) -> str:
    """Return a model's name wherever one stands: of a folder or a file its whole path."""
    path = user_path(source)
    return str(path.resolve()) if path.exists() else source


def check_adapters(network: PreTrainedModel, lora: Lora) -> None:
    """Refuse targets that are no linear modules of a network. Raises SpecError, MissingDependencyError."""
    _targets(network, lora)
    if find_spec("peft") is None:
        raise MissingDependencyError("training adapters needs the package peft", fix="pip install 'hydrometer[peft]'")


def adapter_parameters(network: PreTrainedModel, lora: Lora) -> int:
    """Return how many parameters are trained. `network` is not run and needs no storage. Raises SpecError."""
    targets = _targets(network, lora)
    factors = sum(lora.r * sum(m.weight.shape) for m in targets.values())
    magnitudes = sum(m.weight.shape[1 if isinstance(m, Conv1D) else 0] for m in targets.values())
    owners = {"none": [], "lora_only": list(targets.values()), "all": list(network.modules())}[lora.bias]
    biases = sum(b.numel() for m in owners if (b := getattr(m, "bias", None)) is not None)
    return factors + (magnitudes if lora.use_dora else 0) + biases


class Optimised:
    """All weights of a network, in float32 or rounded to bfloat16 after every step.

    Parameters
    ----------
    lm : the law's, float32. dtype : of the weights that are trained.

    Attributes
    ----------
    trained : the network in the loop: `lm` itself, or a copy.
    """

    def __init__(self, lm: CausalLM, dtype: torch.dtype) -> None:
        self.lm, self.trained = lm, lm
        network: Any = lm.model
        network.requires_grad_(True)
        if dtype != torch.float32:
            self.trained = _around(lm, rounded(lm.model, dtype))
            self.gather()

    @property
    def stepped(self) -> CausalLM:
        """The network whose weights the optimizer steps and checkpoints hold."""
        return self.trained

    def attach(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        """Take part in the steps of an optimizer of `stepped`, where that is not the network in the loop."""

    def follow(self) -> None:
        """Bring the network in the loop up to date with `stepped`."""

    def gather(self) -> None:
        """Bring the law's network up to date."""
        if self.trained is not self.lm:
            self.lm.model.load_state_dict(self.trained.model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what `restore` takes."""
        return {k: v.detach().clone() for k, v in self.lm.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the law's network to an earlier state."""
        self.lm.model.load_state_dict(state)


class MasterWeights(Optimised):
    """Float32 master weights, which are the law's own network, and the network in the loop: these rounded.

    Gradients are added up over the batches of a step, clipped and applied in float32; steps below the rounding add up.
    """

    def __init__(self, lm: CausalLM, dtype: torch.dtype) -> None:
        super().__init__(lm, dtype)
        rounded, masters = self.trained.model.parameters(), lm.model.parameters()
        self._pairs = list(zip(rounded, masters, strict=True))
        for own, master in self._pairs:
            own.register_post_accumulate_grad_hook(partial(_hand_over, master))

    @property
    def stepped(self) -> CausalLM:
        """The law's network."""
        return self.lm

    def attach(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        """Clip the masters' gradients before a step; round the masters after it."""

        def clip(*_: object) -> None:
            torch.nn.utils.clip_grad_norm_(self.lm.model.parameters(), max_grad_norm)

        def end(*_: object) -> None:
            self.lm.model.zero_grad()
            self.follow()

        optimizer.register_step_pre_hook(clip)
        optimizer.register_step_post_hook(end)

    @torch.no_grad()
    def follow(self) -> None:
        """Round the masters."""
        for own, master in self._pairs:
            own.copy_(master)

    def gather(self) -> None:
        """Leave the law's network: it is what is stepped."""


def _hand_over(master: nn.Parameter, own: Tensor) -> None:
    """Add a gradient to the master's, and forget it."""
    assert own.grad is not None  # called after it was made
    gradient, own.grad = own.grad.to(master.dtype), None
    if master.grad is None:
        master.grad = gradient
    else:
        master.grad += gradient


class Adapted(Optimised):
    """Low-rank adapters over a network that stays.

    Parameters
    ----------
    seed : of the fresh adapters. named : the base, as `peft` finds it; None to store it with the adapter.

    Raises
    ------
    SpecError : a target that is no linear module of the decoder layers.
    MissingDependencyError : peft is not installed.
    """

    def __init__(self, lm: CausalLM, lora: Lora, dtype: torch.dtype, seed: int, named: FromSource | None) -> None:
        network = rounded(lm.model, dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapter = attached(network, lora)
        self.lm, self.trained, self.named = lm, _around(lm, network), named
        self._copy(lambda name, value: True)
        self.gather()
        lm.adapter = self

    @torch.no_grad()
    def gather(self) -> None:
        """Merge the adapters into the law's network, in float32; what is trained is left as it is."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        law = self.lm.model.state_dict()
        self._copy(lambda name, value: value.requires_grad)
        for name, module in self.trained.model.named_modules():
            if isinstance(module, BaseTunerLayer):
                layer: Any = module
                weight = layer.get_base_layer().weight
                kept = weight.data
                weight.data = kept.float().clone()
                layer.merge()
                law[f"{name}.weight"].copy_(weight)
                layer.unmerge()
                weight.data = kept  # exactly: adding and subtracting leaves rounding errors

    def _copy(self, which: Callable[[str, Tensor], bool]) -> None:
        """Copy parameters of the network itself to the law's."""
        law = self.lm.model.state_dict()
        with torch.no_grad():
            for name, value in self.trained.model.named_parameters():
                if "lora_" not in name and which(name, value):
                    law[_plain(name)].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what is trained."""
        learnt = ((k, v) for k, v in self.trained.model.named_parameters() if v.requires_grad)
        return {k: v.detach().clone() for k, v in learnt}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the adapters to an earlier state, and merge them."""
        with torch.no_grad():
            for name, value in self.trained.model.named_parameters():
                if name in state:
                    value.copy_(state[name])
        self.gather()

    def save(self, folder: Path) -> None:
        """Write the folder `adapter` for peft, and `base` for a base without a name."""
        from peft import get_peft_model_state_dict

        at = folder / ADAPTER
        at.mkdir()
        tensors: dict[str, Tensor] = get_peft_model_state_dict(self.adapter, save_embedding_layers=False)
        save_file({k: v.detach().contiguous() for k, v in sorted(tensors.items())}, at / WEIGHTS)
        fields = self.adapter.peft_config["default"].to_dict() | {
            "base_model_name_or_path": f"../{BASE}" if self.named is None else _found(self.named.source),
            "revision": None if self.named is None else self.named.revision,
            "inference_mode": True,
        }
        # peft keeps sets, whose order is not that of the names.
        plain = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in fields.items()}
        (at / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True), encoding="utf-8")
        if self.named is None:
            base: Any = copy.deepcopy(self.lm.model)
            weights = self.trained.model.state_dict()
            base.load_state_dict({_plain(k): v for k, v in weights.items() if "lora_" not in k})
            with quiet():
                base.save_pretrained(folder / BASE)
                self.lm.tokenizer.save_pretrained(folder / BASE)


def _plain(name: str) -> str:
    """Name of a parameter as the network has it without adapters."""
    return name.replace(".base_layer.", ".")


def rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy with parameters of that type; buffers, such as angles, stay float32."""
    network: Any = copy.deepcopy(model)
    for p in network.parameters():
        p.data = p.data.to(dtype)
    return network.requires_grad_(True)


def _around(lm: CausalLM, model: PreTrainedModel) -> CausalLM:
    """Return the same model around another network of its architecture, without the kernels for plain networks."""
    other = copy.copy(lm)
    other.model, other.network, other.is_llama = model, Network(model, lm.holes), False
    return other


def attached(network: PreTrainedModel, lora: Lora) -> PeftModel:
    """Put fresh adapters into a network; all else is frozen. Raises as `check_adapters`."""
    check_adapters(network, lora)
    import peft

    names = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType]  (a number, as its formula says)
        lora_dropout=lora.lora_dropout,
        target_modules=names,
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about transposed weights, which it then handles
        return peft.get_peft_model(network, config)  # pyright: ignore[reportReturnType]


def _targets(network: PreTrainedModel, lora: Lora) -> dict[str, Any]:
    """Return the modules that get adapters, by name. Raises SpecError."""
    net: Any = network
    head = net.get_output_embeddings()
    linear = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    if lora.target_modules == "all-linear":
        return linear
    chosen: dict[str, Any] = {}
    for wanted in lora.target_modules:
        found = {n: m for n, m in linear.items() if n == wanted or n.endswith(f".{wanted}")}
        if not found:
            there = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linear}))
            what = "lora.target_modules names no linear module of the decoder layers"
            raise SpecError(what, got=wanted, fix=f"take all-linear, or some of {there}")
        chosen |= found
    return chosen
