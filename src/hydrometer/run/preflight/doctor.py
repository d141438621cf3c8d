"""The verb `doctor`: examine a run before paying for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError, InputError, SpecError, one_line
from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.causal_lm.engines.client import Refusal, Server, server_base
from hydrometer.models.causal_lm.engines.temperature_probe import COLD, log_prob_kind, top_log_probs
from hydrometer.models.families import RunSpec, family_of
from hydrometer.run.graph.inputs import check_inputs, check_places
from hydrometer.run.graph.join import joined
from hydrometer.run.graph.plan import plan_run
from hydrometer.run.graph.recipes import load_spec
from hydrometer.run.preflight.design import examine_design
from hydrometer.run.preflight.diagnosis import Diagnosis, diagnose, remembered, told
from hydrometer.store.records import RunFolder
from hydrometer.store.storage_uri import place_of

__all__ = ["doctor", "examine_server"]


def doctor(
    source: str | Path | RunSpec,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Diagnosis:
    """Examine a run: what would make it fail, or spoil its figures. Nothing is written to its folder.

    Language models are opened for a small probe of the truth, whose findings are kept in the user's cache. Every
    finding names what is found, why it matters, and a fix; `run` calls the same examination first and refuses to start
    on a fatal finding.

    Parameters
    ----------
    source : a recipe's name, a YAML file, or a specification.
    out : the folder or URL that the run would use; ``runs/NAME`` by default. What is there already is not asked of the
        disk.
    overrides : ``a.b.c=VALUE``, as ``--set``.
    cache : folder or URL for artifacts, as for `run`.

    Raises
    ------
    SpecError : the specification cannot be read. What is wrong behind it (a model that is not there, a folder that
        holds another experiment) is a fatal finding.

    Examples
    --------
    >>> import hydrometer as hm
    >>> found = hm.doctor("markov", overrides=["seeds=1"])
    >>> found.is_fatal, sorted({f.code for f in found.findings if f.severity == "warning"})
    (False, ['one-seed'])
    """
    spec = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    root = place_of(out) if out is not None else Path("runs") / spec.name
    artifacts = place_of(cache) if cache is not None else root / "artifacts"
    try:
        folder = RunFolder(root)
        check_places(root, cache)
    except FolderError as e:
        return _no_folder(spec, e)
    refused = _refused(spec)
    if any(f.chain is None for f in refused):
        return Diagnosis(tuple(refused))
    if refused:
        sound = {n: c for n, c in spec.chains.items() if n not in {f.chain for f in refused}}
        if not sound:
            return Diagnosis(tuple(refused))
        rest = spec.model_copy(update={"chains": sound})
        found = remembered(diagnose(rest, plan_run(rest), artifacts))
        return Diagnosis((*refused, *found.lasting), found.passing)
    try:
        whole = joined(folder, spec)
    except (FolderError, SpecError) as e:
        return _no_folder(spec, e)
    return remembered(diagnose(whole, plan_run(whole), artifacts, spec))


def _no_folder(spec: RunSpec, e: InputError) -> Diagnosis:
    """Return what can be said if the run's folder cannot be used."""
    lasting = tuple(replace(f, chain=name) for name in spec.chains for f in told(spec, examine_design(spec, name)))
    why = "a folder holds one experiment; nothing in it is ever overwritten"
    return Diagnosis(lasting, (fatal("folder", e.said, why, e.fix or "choose another --out"),))


def _refused(spec: RunSpec) -> list[Finding]:
    """Return what the families' checks and the plan refuse: one finding a chain, or one for the run."""
    why = "the run would not start"
    found: list[Finding] = []
    for dear in (False, True):  # cheap checks of all chains first, before any model is opened
        for name, chain in spec.chains.items():
            if name in (f.chain for f in found):
                continue
            try:
                family_of(chain).check(chain) if dear else check_inputs([chain])
            except InputError as e:
                found.append(replace(fatal("refused", e.said, why, e.fix or "mend the specification"), chain=name))
    if not found:
        try:
            plan_run(spec)
        except InputError as e:
            found.append(fatal("refused", e.said, why, e.fix or "mend the specification"))
    return found


_PROMPT = "The"


def examine_server(url: str, *, model: str | None = None, timeout: float = 60.0) -> list[Finding]:
    """Ask an OpenAI-compatible server for next-token log-probabilities at temperatures 1 and 0.5, and compare.

    Parameters
    ----------
    url : of the server, with or without ``/v1``.
    model : its name for the model; None takes the first that it lists.
    timeout : seconds to wait for each answer.

    Returns
    -------
    One finding that names the law of the log-probabilities.

    Raises
    ------
    InputError : no such server, or it returns no log-probabilities.
    """
    server = Server(server_base(url), timeout)
    try:
        name = model or _first_model(server)
        warm, cold = (top_log_probs(server.ask, name, _PROMPT, t) for t in (1.0, COLD))
    except Refusal as e:
        raise InputError(e.what, got=e.got, fix=e.fix) from None
    return [_verdict(warm, cold, _version(server))]


def _verdict(warm: Mapping[str, float], cold: Mapping[str, float], engine: str) -> Finding:
    """Compare the server's answers at temperature 1 and at a lower one."""
    kind, ratio = log_prob_kind(warm, cold)
    if kind == "logits":
        return fatal(
            "served-logits",
            f"{engine} returns logits where log-probabilities are asked for",
            "they are not normalised, so no entropy or divergence can be made of them",
            "serve with --logprobs-mode processed_logprobs, or raw_logprobs",
        )
    if kind == "flat":
        return warning(
            "served-undecided",
            f"{engine} returns too few different log-probabilities to tell at which temperature they are",
            "what its recorded log-probabilities are of is not known",
            "score the rows again here before using them",
        )
    if kind == "raw":
        return warning(
            "served-raw",
            f"{engine} returns log-probabilities of the law without its selectivity (raw)",
            "at another temperature than 1, or with top_p, top_k or min_p, the mean of these is a cross-entropy, not "
            "the entropy of what was drawn, and truncation does not show",
            "serve with --logprobs-mode processed_logprobs where rows are drawn selectively, or score them again here",
        )
    if kind == "processed":
        return note(
            "served-processed",
            f"{engine} returns log-probabilities of the law that it draws from (processed)",
            "these are what a row's recorded log-probability means here; those without the selectivity are not at hand",
            "nothing",
        )
    return warning(
        "served-undecided",
        f"{engine}'s log-probabilities change with temperature by a factor of {ratio:.2f}, where 1 or {1 / COLD:g} "
        "is expected",
        "what its recorded log-probabilities are of is not known: it may apply penalties or a truncation of its own",
        "switch off the server's default sampling parameters, or score the rows again here",
    )


def _first_model(server: Server) -> str:
    answer = server.ask("/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise Refusal("the server lists no model", answer, "check that it has finished loading") from None


def _version(server: Server) -> str:
    """Return the engine's name; vLLM reports its version, others may not."""
    try:
        answer: Any = server.ask("/version")
        return f"vLLM {one_line(str(answer['version']), 40)}"
    except (Refusal, KeyError, TypeError):
        return "the server"
