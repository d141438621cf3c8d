"""The budget at which ways to distil are compared: the steps, tokens or compute of `mle` on the teacher's rows.

A clock is no part of a reproducible experiment: operations are counted from the specification alone (`models.work`),
with every answer at its longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hydrometer.core.distillation import Distillation
from hydrometer.core.errors import SpecError
from hydrometer.models.fit_capabilities import Budgets
from hydrometer.models.work import HasCostModel
from hydrometer.stages.nodes import FitNode, Rows
from hydrometer.stages.stage import longest_answer

__all__ = ["at_budget"]

Known = dict[tuple[object, ...], int]


def at_budget(node: FitNode, rows: int, usual: Callable[[], Rows], known: Known) -> FitNode:
    """Return a distilled fit at its chain's budget; the fit itself where it takes that anyway.

    Parameters
    ----------
    rows : how many rows of the teacher's `mle` learns from.
    usual : plans these rows, at the fit's selectivity.
    known : steps that compute pays for, by what is paid; filled here, as seeds cost the same.

    Raises
    ------
    SpecError : the budget does not pay for one step.
    """
    family, chain, d = node.context.family, node.context.spec, node.distillation
    if not isinstance(family, Budgets) or d is None or (kind := family.budget(chain)) == "epochs":
        return node
    if kind == "tokens":
        if (theirs := usual()).key == node.data.key and not d.prefixes.own:
            return node
        return replace(node, usual=theirs, inputs=(*node.inputs, *theirs.blocks))
    steps = family.steps(node.level, rows)[1]
    if kind == "compute":
        slot = (node.level.role, d.method)
        if slot not in known:
            reference = replace(node, data=replace(node.data, n=rows), distillation=Distillation(d.selectivity))
            known[slot] = _paid(node, reference, steps)
        steps = known[slot]
    return node if steps == family.steps(node.level, node.data.n)[1] else _of_steps(node, family, steps)


def _of_steps(node: FitNode, family: Budgets, steps: int) -> FitNode:
    chain = family.at_steps(node.context.spec, node.level.role, steps)
    level = next(x for x in node.context.family.levels(chain) if x.role == node.level.role)
    return replace(node, context=replace(node.context, spec=chain), level=level)


def _paid(node: FitNode, reference: FitNode, most: int) -> int:
    """Return for how many steps, at most `most`, a fit takes no more operations than the reference."""
    family = node.context.family
    if not (isinstance(family, Budgets) and isinstance(family, HasCostModel)):
        raise SpecError("this family does not say what its fits take", got="budget: compute", fix="budget: steps")
    counted, mean = family, float(longest_answer(node.context.spec))
    budget = reference.work(counted, mean).flops

    def takes(steps: int) -> float:
        return _of_steps(node, family, steps).work(counted, mean).flops

    if takes(1) > budget:
        what = f"the compute of mle on the teacher's rows ({budget:.3g} operations) does not pay for one step"
        raise SpecError(f"{what} of {node.does()}", got=f"{takes(1):.3g}", fix="budget: steps, or leave the loss out")
    low, high = 1, max(most, 1) + 1  # takes(low) is paid; a way that costs less is not given more steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) <= budget else (low, middle)
    return low
