"""A distilled fit as TRL 1.16's `GKDTrainer` and `DistillationTrainer` take it: arguments, and both models.

TRL's generalised Jensen-Shannon divergence with `beta` is `jsd` of that weight; at 0 it is KL(p, q), at 1 KL(q, p). It
knows no selectivity of the teacher: a temperature is put into the output matrix of the teacher that is written.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch

from hydrometer.core.distillation import DENSE, Distillation
from hydrometer.core.errors import InputError
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.level_spec import LevelSpec
from hydrometer.models.causal_lm.training.initialization import init_model
from hydrometer.models.causal_lm.training.trainer_settings import trainer_arguments
from hydrometer.models.objectives import Divergence, divergence_of

__all__ = ["TrlTrainer", "arguments_of", "write_models"]

TrlTrainer = Literal["gkd", "distillation"]
_BETA = {"kl_teacher_student": 0.0, "kl_student_teacher": 1.0}
_OURS = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "optim", "seed"),
)
_DIFFERS = (
    "the weights after the last step are kept, not those of the best evaluation on held-out rows",
    "rows are shuffled, and drawn by the student, with the trainer's own random numbers",
)


def arguments_of(trainer: TrlTrainer, d: Distillation, law: CausalLaw, level: LevelSpec, rows: int, seed: int) -> Any:
    """Return what the trainer's configuration takes, by its names, and what still differs in words.

    Raises
    ------
    InputError : a setting that the trainer does not have.
    """
    training, divergence = level.training, divergence_of(d.objective)
    lmbda, fix = d.prefixes.own, f"train it here, or export rows alone for {trainer}"

    def refuse(what: str, got: object) -> InputError:
        return InputError(f"TRL has no {what}", got=got, fix=fix)

    beta = None
    if isinstance(divergence, Divergence):
        beta = divergence.weight if divergence.kind == "jsd" else _BETA.get(divergence.kind)
    if beta is None or divergence is None:
        raise refuse("such objective of next-token laws: it has jsd and both KLs", d.objective.to_json())
    if isinstance(divergence, Divergence) and (divergence.temperature != 1 or divergence.mle):
        raise refuse("temperature of the loss apart from the drawing's, and no share of mle", d.objective.to_json())
    if d.selectivity.to_json().keys() - {"temperature"}:
        raise refuse("selectivity of the teacher besides its temperature", d.selectivity.label)
    if d.teacher_law != DENSE:
        raise refuse("kept part of a teacher's law", d.teacher_law.to_json())
    if d.prefixes.every != 1:
        raise refuse("drawing of rows for several steps at once", d.prefixes.to_json())
    if training.lora is not None:
        raise refuse("part in a run's adapters", "lora")
    if trainer == "distillation" and lmbda < 1:
        fix = "--trainer gkd"
        raise refuse("DistillationTrainer on other rows than the student's own", d.prefixes.to_json())
    made = trainer_arguments(training, rows, law.lm, seed, None)
    arguments: dict[str, Any] = {name: getattr(made, name) for name in _OURS}
    arguments |= {"lr_scheduler_type": training.lr_scheduler_type, "optim": training.optim, "beta": beta}
    arguments |= {"temperature": 1.0, "bf16": training.bf16, "gradient_checkpointing": training.gradient_checkpointing}
    arguments |= {"disable_dropout": False, "save_strategy": "no", "report_to": "none"}
    most = law.max_new_tokens
    if trainer == "gkd":
        return arguments | {"lmbda": lmbda, "max_new_tokens": most, "seq_kd": False, "max_length": None}, _DIFFERS
    return arguments | {"max_completion_length": most}, _DIFFERS


def write_models(
    folder: Path,
    level: LevelSpec,
    truth: CausalLaw,
    teacher: CausalLaw,
    start: CausalLaw | None,
    s: Selectivity,
    seed: int,
) -> None:
    """Write `student`, the weights that a fit of that seed starts from, and `teacher`, selected at `s`.

    Raises
    ------
    InputError : a teacher whose output matrix cannot take a temperature.
    """
    init_model(level, truth.lm, teacher.lm, seed, None if start is None else start.lm).save(folder / "student")
    temperature = s.temperature or 1.0
    if temperature != 1:
        network: Any = copy.deepcopy(teacher.lm.model)
        lm = CausalLM(network, teacher.lm.tokenizer)
        if not lm.is_split:
            raise InputError("the teacher's temperature cannot be put into its output matrix", got=s.label)
        head = network.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() / temperature)
        if head.bias is not None:
            head.bias = torch.nn.Parameter(head.bias.detach() / temperature)
        network.config.tie_word_embeddings = False
        lm.save(folder / "teacher")
    else:
        teacher.lm.save(folder / "teacher")
