"""What is in a model file: its inputs, operators and tensors, and which boards can run it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgepipe import artifact, codec, isolate, model, plugins, preflight, stages, targets
from edgepipe.agent.runtimes import runtime_for
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.model import Model

SCHEMA = "edgepipe.inspect/1"


def inspect(ref: str, input_shape: model.Shapes | None = None) -> dict[str, Any]:
    """The document of `edgepipe inspect`: everything the file says. A count that could not be made is null.

    Raises:
        UsageError: no such model, or nothing reads it.
        IntegrityError: it is damaged.
    """
    found = model.load(ref, input_shape=input_shape)
    part = plugins.load("formats", found.format, "describe")
    if found.network is not None:
        told = part.of_module(found.module, found.inputs)
    else:
        assert found.path is not None
        told = isolate.read(f"{part.__name__}:describe", found.path)
    macs, reason = found.facts.macs, found.facts.reason
    if macs is None and "macs" in told:
        macs, reason = told["macs"], told["reason"]
    files = _files(found, ref)
    return {
        "schema": SCHEMA,
        "name": found.name,
        "format": found.format,
        "files": [str(path) for path in files],
        "bytes": sum(path.stat().st_size for path in files) if files else None,
        "bytes_gzip": sum(artifact.gzip_size(path) for path in files) if files else None,
        "sha256": found.facts.sha256,
        "inputs": [codec.to_dict(spec) for spec in found.inputs],
        "outputs": [codec.to_dict(spec) for spec in found.outputs],
        "dynamic": [
            f"{spec.name}[{axis}]" for spec in found.inputs for axis, size in enumerate(spec.shape) if size < 0
        ],
        "parameters": found.facts.parameters,
        "macs": macs,
        "reason": reason if macs is None or found.facts.parameters is None else "",
        "ops": dict(sorted(told["ops"].items(), key=lambda item: (-item[1], item[0]))),
        "precision": _precision(told["tensors"]),
        "tensors": told["tensors"],
        "metadata": told["metadata"],
        "exports": {name: _way(found, name) for name in _on_boards()},
        "targets": _targets(found),
    }


def _files(found: Model, ref: str) -> list[Path]:
    """The files of the model: all of a SavedModel's folder, both of an IR, the weights of a torch model."""
    path = found.path or model.weights_of(ref)
    if path is None:
        return []
    beside = [path.with_suffix(".bin")] if found.format == "openvino" else []
    if path.name == "saved_model.pb":
        beside = [part for part in sorted((path.parent / "variables").glob("*")) if part.is_file()]
    return [path, *beside]


def _precision(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """How many tensors are of each type, all and constants apart, and the sentence that says it."""
    every = Counter(row["dtype"] for row in tensors)
    floats = sum(count for kind, count in every.items() if "float" in kind)
    constants = Counter(row["dtype"] for row in tensors if row["constant"])
    text = f"{floats} of {len(tensors)} tensors are float"
    return {
        "text": text,
        "tensors": len(tensors),
        "float": floats,
        "by_dtype": dict(every),
        "constants": dict(constants),
    }


def _way(found: Model, name: str) -> dict[str, Any]:
    try:
        return {"path": stages.chain(found, name), "reason": ""}
    except UsageError as error:
        return {"path": None, "reason": error.what}


def _on_boards() -> list[str]:
    """The formats that an installable runtime of a board runs."""
    found = (plugins.load("agent.runtimes", name) for name in plugins.names("agent.runtimes"))
    return [form for runtime in found if runtime.PACKAGES for form in runtime.FORMATS]


def _targets(found: Model) -> list[dict[str, Any]]:
    """Each target, whether its runtime can run the file (null: not known), and why or why not."""
    known = _on_boards()
    rows: list[dict[str, Any]] = []
    asked: list[dict[str, str]] = []
    for name in targets.listing():
        row: dict[str, Any] = {"target": name, "runtime": "", "runs": None, "reason": "", "cautions": []}
        rows.append(row)
        try:
            target = targets.load(name)
        except EdgepipeError as error:  # a file of the user's own
            row["reason"] = f"its file can't be read: {error.what}"
            continue
        if found.format not in known:
            row["reason"] = f"no board runs {found.format} files: export it first"
            continue
        wheel = target.runtimes.get(runtime_for(found.format))
        if wheel is None:
            row["reason"] = f"it depends on what is installed there: edgepipe doctor --target {name}"
            continue
        if not wheel.version:
            row.update(runs=False, reason=wheel.reason or "no wheel of its runtime fits the board")
            continue
        runtime = preflight.runtime_of(runtime_for(found.format), wheel.version)
        row["runtime"] = f"{runtime.package} {runtime.version}"
        asked.append({"package": runtime.package, "version": runtime.version or "", "arch": target.arch})
    _ask(found, [row for row in rows if row["runtime"]], asked)
    return rows


def _ask(found: Model, rows: list[dict[str, Any]], asked: list[dict[str, str]]) -> None:
    """Fill in what the format's preflight says, for all boards in one child."""
    if not rows:
        return
    told = {"format_name": found.format, "path": str(found.path), "boards": asked}
    try:
        answers = isolate.call(f"{preflight.__name__}:several", told, sealed=True)
    except EdgepipeError as error:
        for row in rows:
            row["reason"] = error.what
        return
    for row, answer in zip(rows, answers, strict=True):
        row.update(runs=not answer["blocked"], reason="; ".join(answer["blocked"]), cautions=answer["cautions"])
