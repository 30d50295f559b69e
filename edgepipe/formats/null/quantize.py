"""Steps that change nothing, so that whole recipes can be tested without a converter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {"fp16": "changes nothing", "dynamic": "changes nothing", "int8": "changes nothing, but asks for data"}
DEFAULTS: dict[str, dict[str, Any]] = {"fp16": {}, "dynamic": {}, "int8": {"samples": 256}}
NEEDS_DATA = ("int8",)
LIBRARIES: tuple[str, ...] = ()
OPTIONS: tuple[str, ...] = ()


def quantize(
    source: Artifact,
    step: str,  # noqa: ARG001
    params: dict[str, Any],  # noqa: ARG001
    calibration: Path | None,  # noqa: ARG001
    folder: Path,
    options: ExportOptions,  # noqa: ARG001
    call: Call,  # noqa: ARG001
) -> Output:
    """Copy the file."""
    name = Path(source.path).name
    shutil.copyfile(source.path, folder / name)
    return Output([name], source.inputs, source.outputs, source.preprocessing, note="no effect: the null format")
