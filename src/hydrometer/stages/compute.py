"""Which function makes a stage of which kind: the one place that lists them."""

from __future__ import annotations

from pathlib import Path

from hydrometer.core.errors import StoreError
from hydrometer.models.base import Tick
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.draw import draw, encode_texts
from hydrometer.stages.fit import fit, keep_law
from hydrometer.stages.given_nodes import JudgeGivenNode, KeepLawNode, ScoreTextsNode, TextNode
from hydrometer.stages.judge import judge, released, show
from hydrometer.stages.judge_given import judge_given, score_texts
from hydrometer.stages.map_point import map_point
from hydrometer.stages.nodes import (
    AdoptNode,
    DrawNode,
    EmbedNode,
    FitNode,
    JudgeNode,
    MapNode,
    Node,
    PictureNode,
    ReleasedNode,
    ScoreNode,
    ShowNode,
)
from hydrometer.stages.picture import embed, picture
from hydrometer.stages.score import score

__all__ = ["compute"]


def compute(node: Node, bench: ArtifactLoader, folder: Path, tick: Tick) -> dict[str, object]:
    """Compute a stage into `folder`; return facts for its artifact.

    Raises
    ------
    StoreError : the weights of an adopted model are wanted, which cannot be made again.
    """
    match node:
        case DrawNode():
            return draw(node, bench, folder)
        case KeepLawNode():
            return keep_law(node, bench, folder)
        case FitNode():
            return fit(node, bench, folder, tick)
        case AdoptNode():
            raise StoreError("the weights of an adopted model are gone", got=node.name, fix="adopt it again")
        case ScoreNode():
            return score(node, bench, folder)
        case JudgeGivenNode():  # a JudgeNode, too
            return judge_given(node, bench, folder)
        case JudgeNode():
            return judge(node, bench, folder)
        case TextNode():
            return encode_texts(node, folder)
        case ScoreTextsNode():
            return score_texts(node, bench, folder)
        case ShowNode():
            return show(node, bench, folder)
        case ReleasedNode():
            return released(node, bench, folder)
        case MapNode():
            return map_point(node, folder, tick)
        case EmbedNode():
            return embed(node, bench, folder)
        case PictureNode():
            return picture(node, bench, folder)
        case _:
            raise TypeError(f"no function makes a {type(node).__name__}")
