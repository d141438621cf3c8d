"""The one open engine of this process. Imports without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings, Place, Session

__all__ = ["opened", "release"]


@dataclass(slots=True)
class _Open:
    """The open session and its identity."""

    slot: str | None = None
    session: Session | None = None


_OPEN = _Open()


def opened(engine: Engine, settings: EngineSettings, place: Place, weights: object) -> Session:
    """Return the session of an engine with a model; another open session is closed.

    Parameters
    ----------
    weights : JSON-able identity of the model by content.
    """
    slot = json.dumps([engine.name, settings.model_dump(mode="json"), repr(place), weights])
    if _OPEN.session is None or _OPEN.slot != slot:
        release()
        _OPEN.session, _OPEN.slot = engine.open(settings, place), slot
    return _OPEN.session


def release() -> None:
    """Close the open engine, if any."""
    session, _OPEN.slot, _OPEN.session = _OPEN.session, None, None
    if session is not None:
        session.close()
