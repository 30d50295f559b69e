"""Hold what a runtime ran against what the file says is to be run: int8 that runs in float is no int8."""

from __future__ import annotations

from dataclasses import replace

from edgepipe import isolate, plugins
from edgepipe.agent import precision
from edgepipe.errors import BoardError, UsageError
from edgepipe.record import Measurement
from edgepipe.schema import Artifact, Caution, Executed

CODE = "fallback"


def completed(ran: Executed, artifact: Artifact) -> Executed:
    """Add how many layers the file says are integer ones; null where its format, or a library missing here, can't."""
    try:
        module = plugins.load("formats", artifact.format, "tensors")
        count = isolate.call(f"{module.__name__}:integer_layers", {"path": artifact.path})
    except (UsageError, BoardError):
        return ran
    return replace(ran, integer_layers=int(count))


def judged(measurement: Measurement, artifact: Artifact) -> Measurement:
    """The measurement with a warning where the runtime fell back."""
    if not measurement.executed.layers:
        return measurement
    ran = completed(measurement.executed, artifact)
    why = precision.fallback(ran)
    if why and measurement.provider:
        why = f"{why}, by {measurement.provider}"
    warnings = [Caution(CODE, why, "another runtime, format or recipe; or --allow-fallback")] if why else []
    return replace(measurement, executed=ran, warnings=[*measurement.warnings, *warnings])


def check(measurement: Measurement, where: str) -> None:
    """Refuse a measurement that `judged` found to be of something else than the file says.

    Raises:
        BoardError: the runtime fell back.
    """
    found = next((warning for warning in measurement.warnings if warning.code == CODE), None)
    if found:
        fix = "choose another runtime, format or recipe for this board; --allow-fallback takes it as it is"
        raise BoardError(f"the runtime fell back: {found.text}", where, fix)
