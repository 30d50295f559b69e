"""Mixed precision: quantise all layers but the worst, which stay in float until the loss is within the limit.

The same walk for every format, as NNCF's accuracy control does it for one: quantise everything; if that loses too much,
rank the layers by the noise each brings when it alone is quantised, and find by bisection the fewest of the worst that
have to stay in float. Every file tried is a cached stage, so an interrupted walk goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from edgepipe import isolate

if TYPE_CHECKING:
    from edgepipe.model import Model
    from edgepipe.recipe import Action
    from edgepipe.schema import Artifact
    from edgepipe.stages import FileStage, Stages

_LISTED = 8


class Judge(Protocol):
    """Holds a candidate file against the float file it was made from, on data that is not the evaluation set."""

    def loss(self, before: Artifact, after: Artifact) -> float:
        """What the task's metric lost, as a share of 1; without labels the share of answers that changed."""

    def noise_db(self, before: Artifact, after: Artifact) -> float:
        """The noise in the outputs in dB over the signal: higher is worse."""


@dataclass(frozen=True)
class Ranked:
    """A layer and the noise in dB that quantising it alone brings."""

    name: str
    noise_db: float


def walk(
    stages: Stages, model: Model, before: FileStage, action: Action, prefix: str, judge: Judge, limit: float
) -> FileStage:
    """The stage that quantises as many layers of ``before`` as the ``limit`` (a share of 1) allows.

    Its note says which layers stay in float and why.
    """

    def made(keep: list[str]) -> FileStage:
        return stages.quantize(model, before, action, prefix, keep=keep)

    def loss(stage: FileStage) -> float:
        return judge.loss(before.artifact, stage.artifact)

    everything = made([])
    first = loss(everything)
    if first <= limit:
        return _told(everything, f"all layers quantised: the loss is {first:.2%}, at most {limit:.2%} allowed")
    names = [
        layer["name"] for layer in isolate.call(f"{action.module.__name__}:layers", {"path": before.artifact.path})
    ]
    ranking: list[Ranked] = []
    with stages.progress.task(f"rank {len(names)} layers of {model.name} ({stages.format})") as task:
        for done, name in enumerate(names, 1):
            alone = made([other for other in names if other != name])
            ranking.append(Ranked(name, judge.noise_db(before.artifact, alone.artifact)))
            task.update(done, len(names), name[-40:])
    ranking.sort(key=lambda layer: layer.noise_db, reverse=True)
    count = fewest(len(ranking), lambda kept: loss(made([layer.name for layer in ranking[:kept]])) <= limit)
    best = made([layer.name for layer in ranking[:count]])
    note = f"{count} of {len(names)} layers stay in float: {_list(ranking[:count])}"
    return _told(best, f"{note}; loss {first:.2%} -> {loss(best):.2%}, at most {limit:.2%} allowed")


def fewest(total: int, holds: Any) -> int:
    """The smallest count in 1..total for which ``holds(count)``, by bisection; ``total`` where none below it does."""
    low, high = 1, total
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _list(layers: list[Ranked]) -> str:
    words = [f"{layer.name} ({layer.noise_db:.0f} dB)" for layer in layers[:_LISTED]]
    more = len(layers) - len(words)
    return ", ".join(words) + (f" and {more} more" if more > 0 else "") + " by the noise each brings alone"


def _told(stage: FileStage, note: str) -> FileStage:
    said = stage.record.get("note", "")
    return replace(stage, record={**stage.record, "note": f"{note}; {said}" if said else note})
