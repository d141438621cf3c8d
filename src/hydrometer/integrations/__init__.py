"""The instrument inside other programs' trainers."""

from typing import TYPE_CHECKING

from hydrometer._lazy import lazily

if TYPE_CHECKING:
    from hydrometer.integrations.plane_callback import PlaneCallback

__all__ = ["PlaneCallback"]

__getattr__, __dir__ = lazily(__name__, {"plane_callback": "PlaneCallback"})
