"""Findings of an examination before a run: what was found, why it spoils the result, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from hydrometer.core.errors import StoreError, one_line
from hydrometer.core.io.yaml_io import is_object

__all__ = [
    "FIGURE_CODES",
    "HARDLY_LEARNT",
    "SEVERITIES",
    "SHARED_PROMPTS",
    "Finding",
    "Severity",
    "fatal",
    "note",
    "warning",
]

Severity = Literal["fatal", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fatal", "warning", "note")
HARDLY_LEARNT = "hardly-learnt"
"""Code of the finding that trained models have learnt less than half of what there is to learn."""
FIGURE_CODES = ("kl-below-zero", "controls-disagree", HARDLY_LEARNT)
"""Codes of findings about figures, made when all is judged; all others are of what is about to be made."""
SHARED_PROMPTS = "prompts-shared"
"""Code of the finding that models are judged on the prompts that they are trained on; results and pages say it, too."""
_TEXTS = ("code", "what", "why", "fix")


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of an examination.

    Attributes
    ----------
    code : a short name that does not change between versions, for programs and for the documentation's table.
    severity : "fatal" where the run would fail or its figures mean nothing, "warning" where they say less than they
        seem to, "note" where nothing is wrong here but it matters elsewhere.
    what : what is found, with its figures.
    why : what it does to the result.
    fix : what to do.
    chain : the chain it is about; None for the run as a whole, and until the caller fills it in.

    Examples
    --------
    >>> Finding("one-seed", "warning", "one seed", "no spread between seeds", "set seeds to 3 or more").is_fatal
    False
    """

    code: str
    severity: Severity
    what: str
    why: str
    fix: str
    chain: str | None = None

    @property
    def is_fatal(self) -> bool:
        """Whether it keeps a run from starting."""
        return self.severity == "fatal"

    def to_json(self) -> dict[str, str | None]:
        """Return the fields, each text one line."""
        return {k: v if v is None else one_line(str(v)) for k, v in asdict(self).items()}

    @staticmethod
    def from_json(value: object) -> Finding:
        """Read what `to_json` gave. Raises StoreError."""
        if not is_object(value):
            raise StoreError("not a finding", got=value)
        chain, severity = value.get("chain"), value.get("severity")
        texts = {k: v for k in _TEXTS if isinstance(v := value.get(k), str)}
        if len(texts) < len(_TEXTS) or severity not in SEVERITIES or not (chain is None or isinstance(chain, str)):
            raise StoreError("not a finding", got=value)
        return Finding(severity=severity, chain=chain, **texts)


def fatal(code: str, what: str, why: str, fix: str) -> Finding:
    """Make a fatal finding."""
    return Finding(code, "fatal", what, why, fix)


def warning(code: str, what: str, why: str, fix: str) -> Finding:
    """Make a warning."""
    return Finding(code, "warning", what, why, fix)


def note(code: str, what: str, why: str, fix: str) -> Finding:
    """Make a note."""
    return Finding(code, "note", what, why, fix)
