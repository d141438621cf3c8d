"""Diagnose a chain of language models: tokens, prompts, sizes and rows, then the probe.

Only the probe opens weights, and only if nothing fatal was found before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.base import Precision
from hydrometer.models.causal_lm.cost.memory import count_parameters
from hydrometer.models.causal_lm.data.parts import parts_of
from hydrometer.models.causal_lm.engines.served_model import Served
from hydrometer.models.causal_lm.inference.law import CausalLaw, learns_from_whole_rows
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.inference.served_source import ServedConfig
from hydrometer.models.causal_lm.level_spec import FromLayers, Init
from hydrometer.models.causal_lm.networks.network import max_positions
from hydrometer.models.causal_lm.opening import judged_prompts
from hydrometer.models.causal_lm.preflight.prompt_checks import examine_parts, examine_prompts, shared_prompts
from hydrometer.models.causal_lm.preflight.token_checks import Subject, examine_tokens
from hydrometer.models.causal_lm.preflight.truth_probe import examine_probe, take_probe
from hydrometer.models.causal_lm.spec import FromSource, PromptsFile
from hydrometer.models.causal_lm.text_truth import baseline_part, text_truth, training_texts
from hydrometer.models.causal_lm.truth_spec import TextFile

__all__ = ["Subject", "examine"]

_FEW_STEPS = 100  # of an optimiser; what fits of fewer had learnt is in docs, Uncertainty


def examine(subject: Subject, open_law: Callable[[Precision], CausalLaw | ServedLaw]) -> list[Finding]:
    """Examine one chain.

    Parameters
    ----------
    open_law : opens the truth's law in a precision; called only if nothing fatal is found without it.
    """
    found = [
        *examine_tokens(subject),
        *_room(subject),
        *shared_prompts(subject.chain.truth),
        *examine_parts(subject.chain),
        *examine_prompts(subject.prompts, subject.tokenizer, subject.stop_ids),
        *_sizes(subject),
        *_steps(subject),
        *_weights(subject),
        *_rows_per_prompt(subject),
        *_texts(subject),
        *_columns(subject),
        *_drawn_elsewhere(subject),
        *_baselines(subject),
        *_other(subject),
        *_served(subject),
    ]
    if not any(f.is_fatal for f in found) and not subject.chain.truth.is_served:
        probe = take_probe(lambda precision: _opened(open_law(precision)), subject.chain)
        found += [*examine_probe(probe, subject.chain), *_learnt(subject, probe.law)]
    return found


def _opened(law: CausalLaw | ServedLaw) -> CausalLaw:
    if not isinstance(law, CausalLaw):
        raise TypeError("a probe of hidden states and entropies needs an opened model")
    return law


def _served(s: Subject) -> list[Finding]:
    """Say which models are served; no server is asked, as it may be started later."""
    out: list[Finding] = []
    named = {"truth": s.chain.truth, "teacher": s.chain.given_teacher}
    for role in sorted(s.chain.served_roles, reverse=True):
        model = named[role]
        if model is None or not isinstance(model.source, Served):
            continue
        at = model.source.served
        called = s.chain.truth.model_role if role == "truth" else role
        if called != role and called in named:
            continue  # beside a text the teacher stands in both places
        what = f"the {called} is {at.model}, served at {at.base_url}; nothing of its weights is opened here"
        why = (
            "its draws and scores are the server's, so figures under it are plain means without control variates, and "
            "under a selectivity it draws, but gives no entropy and no recall; it is told apart by its name alone"
        )
        out.append(note("served-model", what, why, "start the server before the run; other weights need another name"))
    return out


def _learnt(s: Subject, law: CausalLaw) -> Iterator[Finding]:
    """Check that levels of the truth's architecture can be fitted."""
    whole = replace(law, prompts=s.prompts, max_new_tokens=s.chain.truth.max_new_tokens)
    fitted = [role for role, level in s.chain.level_specs.items() if not isinstance(level.init, FromSource)]
    if learns_from_whole_rows(whole) or not fitted:
        return
    limit = law.lm.running.limit
    yield fatal(
        "looks-ahead",
        "what the network says at a position depends on later ones or on other rows of a batch",
        f"the {' and the '.join(fitted)} would learn another law than the one that is drawn from and judged",
        f"take another {s.chain.truth.model_role}"
        + ("" if limit is None else f", or keep prompt and answer within {limit} tokens"),
    )


def _drawn_elsewhere(s: Subject) -> Iterator[Finding]:
    """Say that an engine spares drawing alone."""
    if s.chain.drawing is None:
        return
    engine, _ = s.chain.drawing
    yield note(
        "weights-opened",
        f"engine {engine.name} draws training rows, and does not spare opening the weights here",
        "this package scores every row itself, and draws what models are judged on, with the weights that the "
        "specification names",
        "nothing if they fit here, which `hydrometer plan` says; else name a model that is served alone, source: "
        "{served: ...}",
    )


def _columns(s: Subject) -> list[Finding]:
    """Say how a file's columns were read, where they have other names than a prompt and its answer."""
    source = s.chain.truth.text or s.chain.truth.prompts
    said = parts_of(source)[0].columns if isinstance(source, PromptsFile | TextFile) else None
    if said is None:
        return []
    why = "models are asked, and texts are taken, by this reading alone"
    fix = "nothing if that is meant; else name them: columns: {prompt: ..., completion: ...}"
    return [note("columns", said, why, fix)]


def _baselines(s: Subject) -> Iterator[Finding]:
    """Say how many rows of a baseline's text are left out."""
    for b in s.chain.baselines:
        part, out = baseline_part(s.chain, b.name)
        if out:
            what = f"{out} of {out + len(part.answers)} rows of the text of baseline {b.name} are left out"
            why = "models are judged on their prompts, and none may be trained on those"
            yield note("baseline-rows-left-out", what, why, "nothing; or give a text with other prompts")


def _other(s: Subject) -> list[Finding]:
    """Say how a teacher's answers come to students of another tokenizer."""
    if s.other is None:
        return []
    what = "the teacher's tokenizer is not the students': its answers cross to them as text, and are encoded anew"
    why = "what does not come back is trained on as the students' tokenizer writes it; results count it as `crossed`"
    return [note("teacher-crosses", what, why, "nothing if that is meant; else take a teacher of the same tokenizer")]


def _room(s: Subject) -> list[Finding]:
    longest = max(len(p) for p in s.prompts.ids) + s.chain.truth.max_new_tokens
    short = {
        role: room
        for role, config in s.by_name.items()
        if (room := max_positions(config)) is not None and longest > room
    }
    return [
        fatal(
            "context-short",
            f"the {role} has {room} positions, prompt and answer take {longest}",
            "its law cannot be made, which would end the run after all that comes before it",
            "raise max_position_embeddings in its architecture, or shorten the prompts or max_new_tokens",
        )
        for role, room in short.items()
    ]


def _sizes(s: Subject) -> Iterator[Finding]:
    teacher = s.configs.get("teacher", s.configs["truth"]) if s.other is None else s.other.outline.config
    if isinstance(teacher, ServedConfig):
        return
    n_teacher, n_student = count_parameters(teacher), count_parameters(s.configs["student"])
    if n_student <= n_teacher:
        return
    yield warning(
        "student-larger",
        f"the student has {n_student:,} parameters, the teacher {n_teacher:,}",
        "a student that can hold more than its teacher is not the compression that distilling is about",
        "give the student fewer layers, or the teacher more",
    )


def _steps(s: Subject) -> Iterator[Finding]:
    """Fits of few steps that start from no working network."""
    texts, said = text_truth(s.chain), list[str]()
    direct = s.chain.data.train if texts is None else texts.train
    for role, level in s.chain.level_specs.items():
        fits = {"": direct} if role == "teacher" else {" directly": direct, " distilled": s.chain.data.distill}
        few = {how: n for how, rows in fits.items() if (n := level.training.steps(rows)[1]) < _FEW_STEPS}
        if few and (start := _untrained(s, level.init)) is not None:
            taken = " and ".join(f"{n} steps{how}" for how, n in few.items())
            said.append(f"the {role} starts from {start} and takes {taken}")
    if said:
        yield warning(
            "few-steps",
            "; ".join(said),
            "such a network is no working model, and after so few steps it has hardly learnt: how students differ then "
            f"says nothing of trained ones (fewer than {_FEW_STEPS} steps are said)",
            "raise data.train, data.distill or num_train_epochs, lower per_device_train_batch_size, or start from a "
            "trained model, init: {source: PATH}",
        )


def _untrained(s: Subject, init: Init) -> str | None:
    """Say what a level starts from, where that is no working network: random weights, or a part of one's layers."""
    if init == "scratch":
        return "random weights"
    if not isinstance(init, FromLayers):
        return None
    owner = s.configs["truth"] if init.layers_of == "truth" else s.configs.get("teacher", s.configs["truth"])
    layers = int(owner.get_text_config().num_hidden_layers)
    return f"{len(init.layers)} of {layers} layers" if len(init.layers) < layers else None


def _weights(s: Subject) -> Iterator[Finding]:
    """Note a quantised truth."""
    quantised = getattr(s.outline.config, "quantization_config", None) is not None
    if s.resolved.identity.get("kind") != "gguf" and not quantised:
        return
    yield note(
        "quantised-truth",
        f"the {s.chain.truth.model_role} is {s.resolved.description}",
        "figures are about the network with rounded weights, which is a law of its own; they are exact for it and "
        "say nothing of the original's",
        "use the original weights where the original is meant",
    )


def _texts(s: Subject) -> Iterator[Finding]:
    """Texts to train on that are longer than what is drawn."""
    if s.chain.truth.text is None:
        return
    rows, longest = training_texts(s.chain, "train"), s.chain.truth.max_new_tokens
    cut = int((~rows.stopped).sum())
    if cut:
        yield note(
            "texts-cut",
            f"{cut} of {len(rows)} texts to train on are longer than max_new_tokens {longest}",
            "models learn their first tokens, as students of a teacher learn what it says up to there; recall is over "
            "whole texts",
            "raise max_new_tokens if answers are that long in use",
        )


def _rows_per_prompt(s: Subject) -> Iterator[Finding]:
    data, judged = s.chain.data, judged_prompts(s.chain.truth)
    asked = len(s.prompts.ids)
    n = asked if judged is None else len(judged.ids)
    wanted = [("distill", data.distill, asked), ("evaluate", data.evaluate, n)]
    wanted += [] if s.chain.truth.text is not None else [("train", data.train, asked)]
    few = {k: (v, p) for k, v, p in sorted(wanted, reverse=True) if v < p}
    if few:
        rows = " and ".join(f"data.{k} {v} for {p} prompts" for k, (v, p) in few.items())
        yield warning(
            "prompts-unanswered",
            f"fewer rows than prompts: {rows}",
            "row i answers prompt i mod P, so the last prompts get no row there and the figures are not about them",
            "raise these numbers to a multiple of the prompts, or give fewer prompts",
        )
        return
    if n > 1 and data.evaluate < 2 * n:
        yield warning(
            "one-row-a-prompt",
            f"{n} prompts are judged on {data.evaluate} rows",
            "with less than two rows of some prompt the error without strata is used, which also counts how "
            "prompts differ: intervals are wider than they need be",
            f"set data.evaluate to {2 * n} or more",
        )
