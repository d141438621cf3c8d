"""Draws a block of training rows by an engine, and scores it.

One engine is open at a time (`engine.opened`); it is closed when a stage needs the machine otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings, Order, Place, Session, opened, release
from hydrometer.models.causal_lm.inference.rescore import rescore
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.core.statistics.estimate import Estimate
    from hydrometer.models.causal_lm.inference.law import CausalLaw

__all__ = ["ROW_STREAM", "draw_by_engine"]

ROW_STREAM = "engine"
"""Child of a draw's stream; its children, named by row, give the seeds of requests."""


def draw_by_engine(
    law: CausalLaw, engine: Engine, settings: EngineSettings, *, dtype: str, n: int, stream: Stream, start: int
) -> tuple[Sequences, dict[str, object]]:
    """Draw rows ``start .. start + n`` of a stream; row i answers prompt i mod P with a seed of its own.

    Unlike the native sampler's, the rows are not a function of the stream: they also depend on the engine's version,
    its machine and its batching. Their law does not depend on how they are divided.

    Parameters
    ----------
    law : the selected law in the chain's `draw_dtype`.
    dtype : that dtype's name.

    Returns
    -------
    Rows with the scorer's log-probabilities, and facts for the artifact's `info`.

    Raises
    ------
    StageError : the engine fails, or draws from another law.
    """
    index = np.arange(start, start + n, dtype=np.int64) % law.n_prompts
    width = int(getattr(law.lm.model.config.get_text_config(), "vocab_size"))  # noqa: B009  (set dynamically)
    order = Order(
        tuple(law.prompts.ids[int(p)] for p in index),
        tuple(stream.child(ROW_STREAM, str(i)).integer() for i in range(start, start + n)),
        law.selectivity,
        law.stop_ids,
        law.max_new_tokens,
        law.lm.vocab_size,
        width > law.lm.vocab_size,
    )
    session = _session(law, engine, settings, dtype)
    try:
        answers, kind = session.draw(order)
    except BaseException:  # an interrupted session cannot be resumed
        release()
        raise
    found = rescore(law, index, answers, kind, dtype=dtype)
    facts: dict[str, object] = {
        "name": engine.name,
        **session.facts,
        "gap": _figures(found.gap) | {"max": found.gap_max},
        "surprise": _figures(found.surprise),
        "edge_tokens": found.dropped,
    }
    return found.rows, {"engine": facts}


def _session(law: CausalLaw, engine: Engine, settings: EngineSettings, dtype: str) -> Session:
    source = law.lm.source
    longest = max(len(p) for p in law.prompts.ids) + law.max_new_tokens
    if source is None or source.base is not None:  # an adapter's weights are in no folder of their own
        place = Place(None, None, dtype, longest, law.lm.vocab_size)
    else:
        place = Place(source.path, source.revision, dtype, longest, law.lm.vocab_size)
    return opened(engine, settings, place, None if source is None else dict(source.identity))


def _figures(e: Estimate) -> dict[str, object]:
    return {"value": e.value, "se": e.se}
