"""Planning a causal-LM chain: sizes without weights, and expected lengths from a few draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from hydrometer.core.errors import MissingDependencyError, ModelError, SpecError, one_line
from hydrometer.core.io.yaml_io import user_path
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Footprint
from hydrometer.models.causal_lm.cost.memory import footprint, level_configs
from hydrometer.models.causal_lm.cost.operations import Shape, Subject, shape_of
from hydrometer.models.causal_lm.data.prompts import conversations
from hydrometer.models.causal_lm.engines.served_model import Served
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.checkpoint_safety import check_sizes
from hydrometer.models.causal_lm.preflight.truth_probe import small_law
from hydrometer.models.causal_lm.spec import CausalLMChain, PromptsFile, Truth, causal_chain
from hydrometer.models.work import Lengths

__all__ = ["DescribedTruth", "at_hand", "described_config", "described_prompts", "expected_lengths", "subject_of"]

_BYTES_PER_TOKEN = 4  # of English text, without a tokenizer
_OLDER = ("rope_theta", "rope_scaling", "torch_dtype")  # of config.json before transformers 5, which still reads them


def at_hand(truth: Truth) -> bool:
    """Whether the truth's model is on this machine; always true without `truth.architecture`.

    The hub is not asked for a described hub id that is not in the local cache.
    """
    if truth.architecture is None:
        return True
    source = truth.source
    if isinstance(source, Served):
        return True  # its weights are nowhere here, and no stage needs them
    if load.HUB_ID.fullmatch(source) and source not in load.ALIASES and not user_path(source).exists():
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(source, "config.json", revision=truth.revision), str)
    try:
        load.resolve(source, truth.revision)
    except (ModelError, MissingDependencyError):
        return False
    return True


def described_config(truth: Truth) -> PretrainedConfig:
    """Return the configuration that `truth.architecture` describes. Raises SpecError."""
    fields = dict(truth.architecture or {})
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        raise SpecError("truth.architecture needs model_type", got=kind, fix="for example model_type: llama")
    try:
        known = AutoConfig.for_model(kind).to_dict()
        if unknown := [k for k in fields if k not in known and k not in _OLDER]:
            raise SpecError("truth.architecture: unknown field", got=unknown[0], fix=f"see {kind}'s configuration")
        check_sizes(fields, "truth.architecture")  # a network without storage is built from them
        config = AutoConfig.for_model(kind, **fields)
        shape_of(config)
    except SpecError:
        raise
    except Exception as e:  # a configuration's checks are its author's and may raise anything
        fix = "give the fields of the model's config.json"
        said = one_line(str(e), 200) or type(e).__name__
        raise SpecError(f"truth.architecture describes no model: {said}", got=kind, fix=fix) from None
    return config


_SUBJECTS_KEPT = 16
_subjects: dict[tuple[str, str, tuple[int, ...]], Subject] = {}
_shapes: dict[str, Shape] = {}


def subject_of(chain: CausalLMChain, config: PretrainedConfig, prompts: tuple[int, ...]) -> Subject:
    """Count a chain's models; cached, as one plan asks thousands of times.

    Parameters
    ----------
    config : of the truth. prompts : lengths of all prompts, tokens.
    """
    slot = repr(chain), config.to_json_string(use_diff=False), prompts
    if slot not in _subjects:
        configs = level_configs(config, chain.level_specs, chain.given_teacher)
        shapes = {role: _shape(c) for role, c in configs.items()}
        if len(_subjects) >= _SUBJECTS_KEPT:
            _subjects.clear()
        _subjects[slot] = Subject(chain, configs, shapes, chain.level_specs, prompts)
    return _subjects[slot]


def _shape(config: PretrainedConfig) -> Shape:
    """Count a network; once, as chains that differ in their training alone have the same."""
    slot = type(config).__name__ + config.to_json_string(use_diff=False)
    if slot not in _shapes:
        _shapes[slot] = shape_of(config)
    return _shapes[slot]


def described_prompts(truth: Truth) -> tuple[int, ...]:
    """Estimate the prompts' lengths without a tokenizer: one token per four bytes of text."""
    match truth.prompts:
        case None:
            texts = [""]
        case str(text):
            texts = [text]
        case PromptsFile() as file:
            texts = [content for _, turns in conversations(file) for _, content in turns] or [""]
    return tuple(max(1, round(len(t.encode()) / _BYTES_PER_TOKEN)) for t in texts)


def expected_lengths(chain: CausalLMChain, law: CausalLaw) -> Lengths:
    """Return the mean length of a few answers drawn from the truth, as in the doctor's probe.

    If the probe is cut before `max_new_tokens`, answers that did not stop count as `max_new_tokens`.
    """
    few = small_law(law)
    x = few.sample(few.block_rows, seed=Stream(0, ("plan",)))
    most = chain.truth.max_new_tokens
    lengths = np.where(x.stopped, x.lengths, most)
    cut = "" if few.max_new_tokens == most else f"; those that had not ended at {few.max_new_tokens} taken to the end"
    return Lengths(float(lengths.mean()), most, f"mean of {len(x)} answers of the truth{cut}")


class DescribedTruth:
    """Mixin of the family for chains whose truth is known by `truth.architecture` only: it plans, and no more."""

    def check(self, chain: ChainSpec) -> None:
        """Refuse levels that cannot be built from the described truth. Raises SpecError."""
        self.subject(causal_chain(chain))

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return the truth's description; no artifact's key contains it."""
        return {"unopened": causal_chain(chain).truth.model_dump(mode="json", exclude_none=True)}

    def describe_truth(self, chain: ChainSpec) -> str:
        """Describe the truth by its source."""
        return f"{causal_chain(chain).truth.source} (not at hand, planned from truth.architecture)"

    def lengths(self, chain: ChainSpec) -> Lengths:
        """Assume that every answer is cut at max_new_tokens."""
        most = causal_chain(chain).truth.max_new_tokens
        return Lengths(float(most), most, "max_new_tokens: the truth is not at hand")

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Weights, gradients, optimiser states and caches; activations are left out."""
        c = causal_chain(chain)
        subject = self.subject(c)
        return footprint(c, subject.configs, stage, role, rows, described=subject.prompts)

    def subject(self, c: CausalLMChain) -> Subject:
        """Return the chain's sizes, counted once."""
        return replace(subject_of(c, described_config(c.truth), described_prompts(c.truth)), described=True)
