"""The flow family: specification to laws, fits and files. torch is imported only where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

import hydrometer as hm
from hydrometer.family import ChainSpec, CheapFamily, Finding, Floats, Precision, Samples, Stage, open_arrays, warning
from hydrometer_flow.spec import FlowChain, FlowLevel

if TYPE_CHECKING:
    from hydrometer_flow.law import FlowLaw

__all__ = ["FLOW", "FlowFamily"]

_GRID = 72
_SHOWN_POINTS = 200


class FlowFamily(CheapFamily):
    """Normalizing flows."""

    name: str = "flow"
    chain_spec: type[ChainSpec] = FlowChain
    libraries: tuple[str, ...] = ("numpy", "scipy", "torch", "zuko")

    def check(self, chain: ChainSpec) -> None:
        """Refuse to plan what cannot run: without torch and zuko nothing is fitted."""
        try:
            import hydrometer_flow.law  # noqa: F401
        except ModuleNotFoundError as e:
            raise hm.MissingDependencyError("flows need torch and zuko", got=e.name, fix="pip install zuko") from None

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """A last batch that is not full is left out of every epoch."""
        c = _chain(chain)
        found: list[Finding] = []
        for role, level, rows in (("teacher", c.teacher, c.data.train), ("student", c.student, c.data.distill)):
            if lost := rows % level.batch_size if rows > level.batch_size else 0:
                found.append(
                    warning(
                        "rows-left-out",
                        f"every epoch of the {role} leaves out {lost} of {rows} rows",
                        "a fit takes whole batches only, in an order drawn anew each epoch",
                        "make data a multiple of batch_size",
                    )
                )
        return found

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions of what computes, and the processor class, whose vector units round differently."""
        import torch

        return {**super().numerics(chain), "cpu": torch.backends.cpu.get_cpu_capability()}

    def fit(self, request: hm.FitRequest) -> hm.Fitted[hm.Law]:
        """Fit by maximum likelihood. Raises FitError."""
        from hydrometer_flow.fit import fit_flow

        return fit_flow(request)

    def save_law(self, law: hm.Law, folder: Path) -> None:
        """Write parameters and weights, exact to the last bit."""
        mine = cast("FlowLaw", law)
        if mine.temperature != 1:
            raise hm.InputError("only an unselected law is stored", got=mine.temperature)
        (folder / "level.json").write_text(mine.level.model_dump_json())
        weights = {f"flow.{name}": value.numpy() for name, value in mine.flow.state_dict().items()}
        np.savez(folder / "flow.npz", loc=mine.loc, scale=mine.scale, **weights)

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> hm.Law:
        """Open what `save_law` wrote. Raises StoreError."""
        import torch

        from hydrometer_flow.law import FlowLaw, make_flow

        try:
            level = FlowLevel.model_validate_json((folder / "level.json").read_text())
            with open_arrays(folder / "flow.npz") as archive:
                arrays = dict(archive)
            loc, scale = arrays.pop("loc"), arrays.pop("scale")
            flow = make_flow(level, len(loc), seed=0)
            flow.load_state_dict({k.removeprefix("flow."): torch.from_numpy(v) for k, v in arrays.items()})
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            fix = "delete the artifact and run again"
            raise hm.StoreError(f"no flow can be read: {e}", got=folder.name, fix=fix) from None
        return FlowLaw(flow, level, loc, scale)

    def exhibit(
        self, chain: ChainSpec, truth: hm.Law, law: hm.Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Log density on a grid around the truth, as the report draws it; planes only."""
        p_star = cast("hm.Mixture", truth)
        if p_star.n_features != 2:
            return None
        mean, covariance = p_star.moments()
        reach = 3.5 * np.sqrt(np.diag(covariance))
        x, y = (np.linspace(m - r, m + r, _GRID) for m, r in zip(mean, reach, strict=True))
        grid = np.column_stack([np.tile(x, _GRID), np.repeat(y, _GRID)])
        log_density = law.log_prob(hm.Points(grid, np.zeros(len(grid)))).reshape(_GRID, _GRID)
        return {
            "kind": "density-2d",
            "version": 1,
            "x": x.round(6).tolist(),
            "y": y.round(6).tolist(),
            "log_density": log_density.round(4).tolist(),
            "points": cast("hm.Points", samples).x[:_SHOWN_POINTS].round(4).tolist(),
            "means": [],
            "weights": [],
        }

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth for what it is."""
        m = _chain(chain).truth.law()
        return f"mixture of {m.n_components} Gaussians in {m.n_features} dimensions ({m.covariance_type} covariance)"

    def cost(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> float:
        """Operations, roughly: a row goes through each network once, and thrice as dear with gradients."""
        c = _chain(chain)
        level = c.teacher if role == "teacher" else c.student
        once = level.transforms * sum(w * w for w in level.hidden_features) * float(rows)
        return once * {"draw": 2.0, "fit": 6.0 * level.epochs, "judge": 6.0}[stage]


def _chain(chain: ChainSpec) -> FlowChain:
    if not isinstance(chain, FlowChain):
        raise hm.InputError("not a flow chain", got=type(chain).__name__)
    return chain


FLOW = FlowFamily()
