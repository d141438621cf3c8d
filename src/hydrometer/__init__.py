"""hydrometer: measure and steer LLM distillation.

    truth p*  --draw-->  D  --fit-->  teacher p'  --select(s), draw-->  D'_s  --fit-->  student p''_s

One instrument that draws, fits and judges any family of models along this chain, and puts every way of distilling on
one precision-recall plane with error bars. `run` does a whole experiment; `judge` compares two laws.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydrometer import _stopping as _stopping  # before the imports that take time
from hydrometer._lazy import lazily
from hydrometer._version import __version__

if TYPE_CHECKING:
    from hydrometer.core.errors import (
        DataError,
        FitError,
        FolderError,
        HydrometerError,
        InputError,
        LawMismatchError,
        MissingDependencyError,
        ModelError,
        SpecError,
        StageError,
        StoreError,
        UnreachableError,
    )
    from hydrometer.core.findings import Finding
    from hydrometer.core.rng import Stream
    from hydrometer.core.spec import Selectivity
    from hydrometer.core.statistics.estimate import Contrast, Estimate, Figures
    from hydrometer.metrics.exact import judge_exact
    from hydrometer.models.base import Family, FitRequest, Fitted, Law
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.choosing.best_of_n import ChosenLaw, choose
    from hydrometer.models.markov.law import Markov
    from hydrometer.models.markov.ngram_fit import fit_markov
    from hydrometer.models.mixture.batch import MixtureBatch
    from hydrometer.models.mixture.em import fit_mixture
    from hydrometer.models.mixture.law import Mixture
    from hydrometer.models.rows.points import Points
    from hydrometer.models.rows.sequences import Sequences
    from hydrometer.models.work import Device
    from hydrometer.report import build_report
    from hydrometer.run.advice.advise import Advice, advise
    from hydrometer.run.api import run
    from hydrometer.run.cost.cost_plan import CostPlan, plan
    from hydrometer.run.exchange.adopting import AdoptResult, adopt
    from hydrometer.run.exchange.exporting import Exported, export
    from hydrometer.run.exchange.scoring import ScoresResult, add_scores
    from hydrometer.run.graph.recipes import load_spec, recipes
    from hydrometer.run.pilot import advise_pilot
    from hydrometer.run.preflight.diagnosis import Diagnosis
    from hydrometer.run.preflight.doctor import doctor
    from hydrometer.run.results.run_result import RunResult, load_run
    from hydrometer.stages.judge import judge_laws as judge
    from hydrometer.stages.statistics.decision import Need
    from hydrometer.store.records import load_results

__all__ = [
    "AdoptResult",
    "Advice",
    "CausalLM",
    "CausalLaw",
    "ChosenLaw",
    "Contrast",
    "CostPlan",
    "DataError",
    "Device",
    "Diagnosis",
    "Estimate",
    "Exported",
    "Family",
    "Figures",
    "Finding",
    "FitError",
    "FitRequest",
    "Fitted",
    "FolderError",
    "HydrometerError",
    "InputError",
    "Law",
    "LawMismatchError",
    "Markov",
    "MissingDependencyError",
    "Mixture",
    "MixtureBatch",
    "ModelError",
    "Need",
    "Points",
    "RunResult",
    "ScoresResult",
    "Selectivity",
    "Sequences",
    "SpecError",
    "StageError",
    "StoreError",
    "Stream",
    "UnreachableError",
    "__version__",
    "add_scores",
    "adopt",
    "advise",
    "advise_pilot",
    "build_report",
    "choose",
    "doctor",
    "export",
    "fit_markov",
    "fit_mixture",
    "judge",
    "judge_exact",
    "load_results",
    "load_run",
    "load_spec",
    "plan",
    "recipes",
    "run",
]

_HOMES = {
    "core.errors": "DataError FitError FolderError HydrometerError InputError LawMismatchError MissingDependencyError"
    " ModelError SpecError StageError StoreError UnreachableError",
    "core.statistics.estimate": "Contrast Estimate Figures",
    "core.findings": "Finding",
    "core.rng": "Stream",
    "core.spec": "Selectivity",
    "metrics.exact": "judge_exact",
    "models.base": "Family FitRequest Fitted Law",
    "models.causal_lm.inference.law": "CausalLaw",
    "models.causal_lm.inference.model": "CausalLM",
    "models.choosing.best_of_n": "ChosenLaw choose",
    "models.markov.ngram_fit": "fit_markov",
    "models.markov.law": "Markov",
    "models.mixture.em": "fit_mixture",
    "models.mixture.batch": "MixtureBatch",
    "models.mixture.law": "Mixture",
    "models.rows.points": "Points",
    "models.rows.sequences": "Sequences",
    "models.work": "Device",
    "report": "build_report",
    "run.exchange.adopting": "AdoptResult adopt",
    "run.advice.advise": "Advice advise",
    "run.api": "run",
    "run.cost.cost_plan": "CostPlan plan",
    "run.preflight.diagnosis": "Diagnosis",
    "run.preflight.doctor": "doctor",
    "run.exchange.exporting": "Exported export",
    "run.results.run_result": "RunResult load_run",
    "run.pilot": "advise_pilot",
    "run.exchange.scoring": "ScoresResult add_scores",
    "run.graph.recipes": "load_spec recipes",
    "stages.statistics.decision": "Need",
    "stages.judge": "judge=judge_laws",
    "store.records": "load_results",
}
_find, __dir__ = lazily(__name__, _HOMES)

# Names of subpackages too, which the first import of them binds: here, where it is undone.
for _verb in ("recipes", "run"):
    import_module(f"hydrometer.{_verb}")
    globals().pop(_verb, None)


def __getattr__(name: str) -> Any:
    """Import a name, or a room, when it is first asked for."""
    if name in ("core", "metrics", "models", "report", "stages", "store"):
        return import_module(f"hydrometer.{name}")
    try:
        return _find(name)
    except ModuleNotFoundError as e:
        if name not in ("CausalLM", "CausalLaw"):
            raise
        from hydrometer.core.errors import MissingDependencyError

        raise MissingDependencyError(
            "causal language models need torch and transformers", got=e.name, fix="pip install 'hydrometer[lm]'"
        ) from None
