"""What is wrong with a chain of language models, known without opening weights."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from transformers import PretrainedConfig

from hydrometer.core.distillation import DENSE, MLE, TeacherLaw
from hydrometer.core.errors import DataError, LawMismatchError, SpecError
from hydrometer.models.causal_lm.cost.memory import level_configs
from hydrometer.models.causal_lm.crossing import check_other, other_teacher
from hydrometer.models.causal_lm.engines.engine import refuse_other_law
from hydrometer.models.causal_lm.inference.opened import model_stop_ids, vocabulary_hash
from hydrometer.models.causal_lm.inference.served_source import find_source
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.networks.network import max_positions
from hydrometer.models.causal_lm.opening import judged_prompts, open_tokenizer, outline_of, truth_opening
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource
from hydrometer.models.causal_lm.text_rows import refuse_ends
from hydrometer.models.causal_lm.text_truth import held_out, training_texts
from hydrometer.models.causal_lm.training.initialization import scratch_config
from hydrometer.models.causal_lm.training.layers import empty_network
from hydrometer.models.causal_lm.training.optimised import check_adapters
from hydrometer.models.objectives import drops

__all__ = ["check_chain"]


def check_chain(chain: CausalLMChain) -> None:
    """Refuse an engine's settings, prompts that are too long, and levels that cannot be made of the truth.

    Raises
    ------
    ModelError, DataError, SpecError, LawMismatchError
    """
    resolved, prompts, _ = truth_opening(chain.truth)
    if chain.drawing is not None:
        engine, settings = chain.drawing
        engine.check(settings, chain)
    truth = outline_of(resolved)
    room = max_positions(truth.config)
    asked = (*prompts.ids, *(() if (judged := judged_prompts(chain.truth)) is None else judged.ids))
    longest = max(len(p) for p in asked) + chain.truth.max_new_tokens
    if room is not None and longest > room:
        fix = "shorten the prompts or max_new_tokens"
        raise SpecError("prompt and answer exceed the truth's max_position_embeddings", got=(longest, room), fix=fix)
    _check_texts(chain, room)
    _check_served(chain)
    _check_objectives(chain)
    n_truth = n_above = None if chain.truth.is_served else _n_layers(truth.config)
    if chain.given_teacher is not None:
        given = outline_of(find_source(chain.given_teacher.source, chain.given_teacher.revision))
        if (other := other_teacher(chain)) is not None:
            if chain.given_teacher.is_served:
                fix = "serve a teacher of the truth's tokenizer, or name one to open"
                raise SpecError(
                    "a served teacher has the truth's own tokenizer", got=str(chain.given_teacher.source), fix=fix
                )
            check_other(chain, other)
        n_above = None if chain.given_teacher.is_served else _n_layers(given.config)
    for role, level in chain.level_specs.items():
        n_above = _check_level(role, level, truth, (n_truth, n_above))
    for baseline in chain.baselines:  # nothing is above it but the truth
        _check_level(f"baseline {baseline.name}", baseline.level(chain.student), truth, (n_truth, n_truth))
    _check_adapters(chain, truth)


def _check_level(role: str, level: LevelSpec, truth: load.Outline, layers: tuple[int | None, int | None]) -> int:
    """Refuse a level that cannot be made of what is above it; returns how many layers it has.

    Parameters
    ----------
    layers : how many the truth and the model above have; None of one that is served.
    """
    n_truth, n_above = layers
    match level.init:
        case "scratch":
            _at_hand(role, "scratch", n_truth)
            return _n_layers(scratch_config(truth.config, level.architecture))
        case "truth":
            return _at_hand(role, "truth", n_truth)
        case "above":
            return _at_hand(role, "above", n_above)
        case FromLayers(layers_of=owner, layers=taken):
            n = _at_hand(role, f"{{layers_of: {owner}, ...}}", n_truth if owner == "truth" else n_above)
            if max(taken) >= n:
                raise SpecError(f"{role}: layers of {owner} are counted from 0 to {n - 1}", got=list(taken))
            return len(taken)
        case FromSource(source=source, revision=revision):
            other = load.outline(load.resolve(source, revision))
            _check_source(role, source, other, truth)
            return _n_layers(other.config)


def _at_hand(role: str, init: str, layers: int | None) -> int:
    """Return how many layers the model has that a level starts from. Raises SpecError where it is served."""
    if layers is None:
        fix = "start from a model that is here, init: {source: PATH}"
        raise SpecError(
            f"{role}: a served model gives neither layers nor a configuration", got=f"init: {init}", fix=fix
        )
    return layers


def _check_objectives(chain: CausalLMChain) -> None:
    """Refuse objectives between next-token laws where the teacher's cannot be had. Raises SpecError."""
    matched = [o for o in chain.loss if o != MLE.to_json()]
    if not matched:
        return
    fix = "loss: [mle], or name a teacher of the students' tokenizer to open"
    laws = [TeacherLaw.from_json(w) for w in chain.teacher_law]
    if ("truth" if chain.teacher == "truth" else "teacher") in chain.served_roles:
        _check_served_laws(chain, laws, matched[0])
    if other_teacher(chain) is not None:
        what = "a teacher of another tokenizer has no next-token laws over the students' tokens"
        raise SpecError(what, got=f"loss: {matched[0]}", fix=fix)
    _check_kept(chain, laws)


def _check_kept(chain: CausalLMChain, laws: list[TeacherLaw]) -> None:
    """Refuse to keep more ids than there are. Raises SpecError."""
    size = max(outline_of(truth_opening(chain.truth)[0]).tokenizer.get_vocab().values()) + 1
    if most := next((w for w in laws if w.k > size), None):
        raise SpecError("teacher_law keeps more ids than the vocabulary has", got=most.to_json(), fix=f"k up to {size}")


def _check_served_laws(chain: CausalLMChain, laws: list[TeacherLaw], loss: str) -> None:
    """Refuse what a served teacher, which tells its likeliest ids at temperature 1, does not know. Raises SpecError."""
    for law in laws:
        if law == DENSE or law.is_sampled:
            fix = "teacher_law: [top_k_bucket(k=20)], or loss: [mle]"
            got = f"loss: {loss}, teacher_law: {law.to_json()}"
            raise SpecError("a served teacher gives no whole next-token laws to match", got=got, fix=fix)
        for s in chain.selectivity:
            if drops(s) or not (s.is_neutral or law.name == "top_k_renormalised"):
                fix = "teacher_law: [top_k_renormalised(k=20)], and temperature alone"
                what = f"a served teacher tells its law at temperature 1: {law.label} is not known at {s.label}"
                raise SpecError(what, got=s.label, fix=fix)


def _check_served(chain: CausalLMChain) -> None:
    """Refuse what cannot be had of a served model. Raises SpecError."""
    served = chain.served_roles
    if not served:
        return
    roles = ("truth",) if chain.teacher == "truth" else ("truth", "teacher")
    for role in (r for r in roles if r in served):
        if chain.drawing is not None and chain.drawing[1].draws(role):
            fix = f"leave {role} out of its `for`, or leave engine out"
            raise SpecError(
                f"the served {role} draws by itself, and no engine for it", got=chain.drawing[0].name, fix=fix
            )
    if roles[-1] in served:
        for s in chain.selectivity:
            refuse_other_law(s, f"the served {roles[-1]}", "use another setting")
    if chain.picture is not None and "truth" in served:
        what = "a served truth gives no hidden states, in whose space a picture is"
        raise SpecError(what, got=chain.picture, fix="leave picture out")


def _check_adapters(chain: CausalLMChain, truth: load.Outline) -> None:
    """Refuse adapters on modules that a level's network does not have."""
    adapted = {role: level.training.lora for role, level in chain.level_specs.items() if level.training.lora}
    if not adapted:
        return
    configs = level_configs(truth.config, chain.level_specs, chain.given_teacher)
    for role, lora in adapted.items():
        check_adapters(empty_network(configs[role]), lora)


def _check_texts(chain: CausalLMChain, room: int | None) -> None:
    """Refuse texts to train on that the model has no room for, and texts with a second end. Raises DataError."""
    if chain.truth.text is not None:
        tokenizer, _, stop_ids = open_tokenizer(chain)
        refuse_ends(held_out(chain).answers, tokenizer, stop_ids)
    taught = [*([] if chain.truth.text is None else [None]), *(b.name for b in chain.baselines)]
    whiches: tuple[Literal["train", "validate"], ...] = ("train", "validate")
    for which, baseline in itertools.product(whiches, taught):
        rows = training_texts(chain, which, baseline)
        prompts = np.array([len(p) for p in rows.prompt_ids])
        longest = int((prompts[rows.prompt_index] + rows.lengths).max())
        if room is not None and longest > room:
            fix = "leave the longest rows out"
            raise DataError("a text with its prompt exceeds max_position_embeddings", got=(longest, room), fix=fix)


def _n_layers(config: PretrainedConfig) -> int:
    return int(config.get_text_config().num_hidden_layers)


def _check_source(role: str, source: str, found: load.Outline, truth: load.Outline) -> None:
    """Refuse a source of another vocabulary or stop set than the truth's."""
    same_vocabulary = vocabulary_hash(found.tokenizer) == vocabulary_hash(truth.tokenizer)
    theirs = model_stop_ids(found.generation_config, found.tokenizer)
    if same_vocabulary and theirs == model_stop_ids(truth.generation_config, truth.tokenizer):
        return
    what = "stop set" if same_vocabulary else "vocabulary"
    fix = "start from a model of the truth's own tokenizer"
    raise LawMismatchError(f"{role}: the source's {what} is not the truth's", got=source, fix=fix)
