"""Specification of a fit. Imports without torch and transformers.

Fields have the names and meanings of transformers (`TrainingArguments`, `EarlyStoppingCallback`) and peft
(`LoraConfig`), except `decay_ratio`, and `num_workers` and `strategy`, which are Ray's and our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BeforeValidator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hydrometer.core.distillation import Objective
from hydrometer.core.errors import SpecError
from hydrometer.core.spec import Strict
from hydrometer.models.causal_lm.engines.engine import as_tuple
from hydrometer.models.objectives import PolicyGradient, divergence_of

__all__ = ["Lora", "Training"]

_MANY = 10**9

_BY_STREAMS = "seeds come from the specification's `seeds`, by named streams"
_IN_MEMORY = "rows are in memory, and their order must not depend on who loads them"
_COMPILED = "compiled kernels add in other orders, by machine and version, so figures would not be reproducible"
_ALWAYS = "the best evaluation on the held-out rows is always kept; metric_for_best_model says by which figure"
_REFUSED = {
    "packing": "rows that share a sequence see each other in common packers; batches here run without padding already",
    "tf32": "it rounds float32 products on some devices only, so figures would not be reproducible",
    "fp16": "steps that overflow are skipped, so figures would not be reproducible; use bf16",
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": _COMPILED,
    "auto_find_batch_size": "the batch would depend on the memory of the machine",
    "group_by_length": "a batch of rows of one length is no random batch, and the gradient is biased",
    "train_sampling_strategy": "rows are drawn at random, by a named stream",
    "neftune_noise_alpha": "its noise is of a global generator, and the objective is no likelihood",
    "label_smoothing_factor": "the objective would not be the likelihood",
    "dataloader_num_workers": _IN_MEMORY,
    "dataloader_prefetch_factor": _IN_MEMORY,
    "dataloader_persistent_workers": _IN_MEMORY,
    "dataloader_drop_last": "every row counts in every epoch",
    "seed": _BY_STREAMS,
    "data_seed": _BY_STREAMS,
    "full_determinism": "fits are always deterministic",
    "load_best_model_at_end": _ALWAYS,
    "eval_strategy": "give eval_steps, or leave it out to evaluate after each epoch",
    "save_strategy": "give save_steps",
    "completion_only_loss": "the loss is over the answers alone, always",
    "assistant_only_loss": "the loss is over the answers alone, always",
    "max_length": "the truth's max_new_tokens is the length of answers",
    "fsdp": "give strategy: fsdp and num_workers",
    "deepspeed": "give strategy: fsdp and num_workers",
    "report_to": "give it at the specification's top, for the run and all of its fits",
    "dtype": "its name here is torch_dtype",
    "per_device_batch_size": "its names are per_device_train_batch_size and per_device_eval_batch_size",
}


class Lora(Strict):
    """Low-rank adapters that are trained in the place of the weights (Hu et al. 2021), by the names of `LoraConfig`.

    Parameters
    ----------
    r, lora_alpha, lora_dropout : rank, scale (``lora_alpha / r``), and share of the adapters' inputs that is dropped.
    target_modules : names of linear modules, or ends of them; `all-linear` for all of the decoder layers.
    bias : which biases are trained.
    use_rslora, use_dora : scale by the square root of r; magnitudes apart from directions.
    """

    r: int = Field(default=8, ge=1, le=4096)
    lora_alpha: float = Field(default=8, gt=0, lt=math.inf)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: (
        Literal["all-linear"] | Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    ) = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False

    @model_validator(mode="before")
    @classmethod
    def _not_here(cls, data: object) -> object:
        _refuse(data, {"modules_to_save": "only adapters are trained: whole modules beside them are not supported"})
        return data

    @field_validator("target_modules")
    @classmethod
    def _plain_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Sort: the order of names changes nothing."""
        names = () if isinstance(value, str) else value
        for name in names:
            if not name.replace("_", "a").replace(".", "a").isalnum():
                raise PydanticCustomError(
                    "target_modules", "target_modules are plain names such as q_proj, not {name}", {"name": repr(name)}
                )
        return value if isinstance(value, str) else tuple(sorted(set(value)))


def _refuse(data: object, reasons: Mapping[str, str]) -> None:
    for key in cast("Mapping[object, object]", data if isinstance(data, Mapping) else {}):
        if isinstance(key, str) and key in reasons:
            raise PydanticCustomError("refused", "{key} is refused: {why}", {"key": key, "why": reasons[key]})


class Training(Strict):
    """How a level is fitted.

    `bf16` is autocast over the weights, whose type is `torch_dtype`. With `master_weights` the optimizer steps float32
    copies of bfloat16 weights, which are these rounded; the copies are the law that is scored and stored. After each
    epoch, or every `eval_steps` steps and at the end, the held-out rows are scored in float32 under the law that will
    be stored, and the best evaluation is kept; `early_stopping_patience` ends a fit after so many evaluations in a row
    that are no better than the best. `metric_for_best_model` says by which figure, an objective's name; None for the
    fit's own objective, which a fit that does not see its teacher always has. `max_steps` takes the place of
    `num_train_epochs`. `decay_ratio` is of the warmup-stable-decay schedule.

    `num_workers` processes (Ray's `ScalingConfig` has the name) share every batch by rows, under `strategy`: each holds
    the whole model (ddp), or a share of its weights, gradients and optimizer states (fsdp). Batch sizes stay those of
    all workers together. `save_steps` is the interval of checkpoints, None for none; it changes no result and is not
    part of a fit's key.
    """

    num_train_epochs: int = Field(default=3, ge=1, le=_MANY)
    learning_rate: float = Field(default=1e-3, gt=0, lt=math.inf)
    per_device_train_batch_size: int = Field(default=32, ge=1, le=_MANY)
    per_device_eval_batch_size: int = Field(default=64, ge=1, le=_MANY)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=_MANY)
    weight_decay: float = Field(default=0.0, ge=0, lt=math.inf)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0, lt=math.inf)
    warmup_ratio: float = Field(default=0.01, ge=0, le=1)
    decay_ratio: float = Field(default=0.2, ge=0, le=1)
    bf16: bool = True
    num_workers: int = Field(default=1, ge=1, le=4096)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    save_steps: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1, le=_MANY)
    warmup_steps: int | None = Field(default=None, ge=0, le=_MANY)
    lr_scheduler_type: Literal["warmup_stable_decay", "linear", "cosine", "constant_with_warmup", "constant"] = (
        "warmup_stable_decay"
    )
    optim: Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"] = "adamw_torch_fused"
    torch_dtype: Literal["float32", "bfloat16"] = "float32"
    master_weights: bool = False
    gradient_checkpointing: bool = False
    eval_steps: int | None = Field(default=None, ge=1, le=_MANY)
    early_stopping_patience: int | None = Field(default=None, ge=1, le=_MANY)
    lora: Lora | None = None
    metric_for_best_model: str | None = None

    @field_validator("metric_for_best_model")
    @classmethod
    def _known_figure(cls, value: str | None) -> str | None:
        try:
            named = None if value is None else Objective.from_json(value)
            if named is not None and isinstance(divergence_of(named), PolicyGradient):
                raise SpecError("a policy gradient has no value", got=value, fix="name kl_student_teacher")
        except SpecError as e:
            raise PydanticCustomError("metric_for_best_model", "{problem}", {"problem": str(e)}) from None
        return None if named is None else named.to_json()

    @model_validator(mode="before")
    @classmethod
    def _irreproducible(cls, data: object) -> object:
        """Say why a setting of TrainingArguments, or of trl, is not one here."""
        _refuse(data, _REFUSED)
        return data

    @property
    def unread(self) -> tuple[str, ...]:
        """Fields that the others put out of use."""
        adamw = self.optim.startswith("adamw")
        out = {
            "num_train_epochs": self.max_steps is not None,
            "warmup_ratio": self.warmup_steps is not None or self.lr_scheduler_type == "constant",
            "warmup_steps": self.lr_scheduler_type == "constant",
            "decay_ratio": self.lr_scheduler_type != "warmup_stable_decay",
            "adam_beta1": not adamw,
            "adam_beta2": not adamw,
        }
        return tuple(name for name, unused in out.items() if unused)

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Omit defaults, so that keys from before these fields stay valid; and in a key, fields that change no result.

        Keys are made with the context "key".
        """
        body: dict[str, Any] = handler(self)
        if self.num_workers == 1:
            body.pop("num_workers", None)
            body.pop("strategy", None)
        if self.save_steps is None or info.context == "key":
            body.pop("save_steps", None)
        fields = type(self).model_fields
        for name in _LATER:
            if getattr(self, name) == fields[name].default:
                body.pop(name, None)
        for name in self.unread:
            body.pop(name, None)
        return body

    @model_validator(mode="after")
    def _whole_checkpoints(self) -> Self:
        if self.num_workers > 1 and self.strategy == "fsdp" and self.save_steps is not None:
            raise PydanticCustomError(
                "save_steps", "save_steps needs strategy ddp: with fsdp no worker holds the whole optimizer state"
            )
        return self

    @model_validator(mode="after")
    def _of_one_worker(self) -> Self:
        alone = {
            "lora": self.lora is not None,
            "torch_dtype": self.torch_dtype != "float32",
            "gradient_checkpointing": self.gradient_checkpointing,
        }
        for name, used in alone.items():
            if used and self.num_workers > 1:
                raise PydanticCustomError("num_workers", "{name} needs num_workers: 1", {"name": name})
        return self

    @model_validator(mode="after")
    def _of_rounded_weights(self) -> Self:
        if self.master_weights and (self.torch_dtype != "bfloat16" or self.lora is not None):
            raise PydanticCustomError(
                "master_weights", "master_weights needs torch_dtype: bfloat16, and no lora: adapters are float32 anyway"
            )
        return self

    @model_validator(mode="after")
    def _read(self) -> Self:
        """Refuse a value that would change nothing."""
        why = {
            "num_train_epochs": "max_steps takes its place",
            "decay_ratio": "it belongs to lr_scheduler_type: warmup_stable_decay",
            "warmup_ratio": "warmup_steps takes its place, and lr_scheduler_type: constant has no warm-up",
            "warmup_steps": "lr_scheduler_type: constant has no warm-up; constant_with_warmup has",
        }
        for name in self.unread:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError(
                    "unread",
                    "{name} would not be read: {why}",
                    {"name": name, "why": why.get(name, "it belongs to optim: adamw_torch")},
                )
        return self

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        if "decay_ratio" not in self.unread and "warmup_ratio" not in self.unread:
            if self.warmup_ratio + self.decay_ratio > 1:
                raise PydanticCustomError("ratios", "warmup_ratio and decay_ratio together must not exceed 1")
        return self

    def check_own_rows(self, every: int) -> None:
        """Refuse what rows that a student draws itself, for so many steps at once, do not allow. Raises SpecError."""
        if self.num_workers > 1:
            what = "rows that a student draws itself need a fit of one process"
            raise SpecError(what, got=f"num_workers: {self.num_workers}", fix="num_workers: 1")
        if (self.save_steps or every) % every:
            what = f"checkpoints lie between steps whose rows a student draws at once, {every} of them"
            raise SpecError(what, got=f"save_steps: {self.save_steps}", fix=f"a multiple of {every}")

    def steps(self, rows: int) -> tuple[int, int]:
        """Return the steps of an epoch of so many rows, and of the fit if nothing stops it early."""
        batches = -(-rows // self.per_device_train_batch_size)
        epoch = -(-batches // self.gradient_accumulation_steps)
        return epoch, epoch * self.num_train_epochs if self.max_steps is None else self.max_steps


_LATER = (
    "max_steps", "warmup_steps", "lr_scheduler_type", "optim", "torch_dtype", "gradient_checkpointing", "eval_steps",
    "early_stopping_patience", "lora", "metric_for_best_model", "master_weights",
)  # fmt: skip
"""Fields that keys of older fits lack."""
