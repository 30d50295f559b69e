"""The flags that several verbs share, declared once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from edgepipe import codec
from edgepipe.errors import UsageError

_DAY = 86400.0
_MOST = 65536  # threads, samples or cores: what lies beyond is a slip of the finger
_HOTTEST = 150.0
_LEAST_RATE = 20e3  # a piece of 256 KiB is to arrive well within the time a push may stall


def complete_target(incomplete: str) -> list[str]:
    """Target names for tab completion."""
    from edgepipe import targets

    return [name for name in targets.listing() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Model names for tab completion."""
    from edgepipe import model

    return [name for name in model.listing() if name.startswith(incomplete)]


Model = Annotated[
    str, typer.Argument(help="A name under models/, a path, or package.module:function.", autocompletion=complete_model)
]
MaybeModel = Annotated[
    str, typer.Argument(help="A model; without it, the default of edgepipe.toml.", autocompletion=complete_model)
]
Target = Annotated[
    str,
    typer.Option(
        "--target", "-t", help="A name under targets/, e.g. loopback, local, rpi4.", autocompletion=complete_target
    ),
]
Host = Annotated[str, typer.Option("--host", help="Where the board is: [user@]name[:port].")]
Recipe = Annotated[
    str, typer.Option("--recipe", "-r", help="Steps joined by +, e.g. int8; none is the baseline; or a TOML file.")
]
Formats = Annotated[str, typer.Option("--to", help="Formats, comma separated: onnx, tflite, openvino.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder to write to.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, tables or warnings.")]
Wait = Annotated[
    str, typer.Option("--wait", help="How long to wait where somebody else holds the board, e.g. 30s, 10m, 2h.")
]
LimitRate = Annotated[str, typer.Option("--limit-rate", help="Bytes per second to send at most, e.g. 500k or 2M.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of the runtime.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples in one inference.")]
OwnBatch = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Samples in one inference; without it what the file fixes, else 1."),
]
Profile = Annotated[str, typer.Option("--profile", help="How long to measure: quick, standard or mlperf.")]
MaxDrop = Annotated[
    str, typer.Option("--max-drop", help="Largest loss of the task's metric, e.g. 1%. Exit 6 beyond it.")
]
MaxSlowdown = Annotated[
    str, typer.Option("--max-slowdown", help="How much slower B may be for sure, by p50; exit 6 beyond it.")
]
Opset = Annotated[int, typer.Option("--opset", help="Highest ONNX opset; 0 is what the target's runtime can load.")]
Dynamic = Annotated[
    list[str] | None,
    typer.Option("--dynamic", help="Leave dimensions open: batch, or NAME=AXES, e.g. image=2,3 (ONNX, OpenVINO)."),
]
Samples = Annotated[
    str, typer.Option("--eval", help="Evaluation set: shipped, full, or auto (full where it is installed).")
]
Synthetic = Annotated[
    bool,
    typer.Option(
        "--synthetic-calibration", help="Calibrate on made-up data where the model has none; the report says so."
    ),
]
Layout = Annotated[
    str, typer.Option("--layout", help="Layout of the first input, e.g. NHWC; TFLite made of NCHW models is NHWC.")
]
Fold = Annotated[bool, typer.Option("--fold-preprocessing", help="Mean, std, scale and colour order inside the file.")]
MadeFor = Annotated[
    str,
    typer.Option(
        *("--target", "-t"),
        help="The board it is for: what its runtimes can't run is refused. The board itself is not asked.",
        autocompletion=complete_target,
    ),
]
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="Raw data to calibrate on: a .npz with arrays named as the inputs, a .npy, or a folder of these or of "
        "images. A quarter is held out to judge by.",
    ),
]
Preprocessing = Annotated[
    str,
    typer.Option(
        "--preprocessing",
        help="How raw data becomes input, for models without a card: 'layout=NCHW scale=1/255 mean=0.5 std=0.2 "
        "color=RGB range=0,255', or a TOML file.",
    ),
]
Task = Annotated[
    str,
    typer.Option(
        "--task", help="What a model without a card does, e.g. image-classification: what the same answer is."
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option("--allow-fallback", help="Take it as it is where a quantised file runs in float; else exit 4."),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        help="NAME=1,3,224,224 with the batch, for each input; or 3,224,224 for the first one, without it.",
    ),
]


def emit(document: Any) -> None:
    """Write one JSON document to stdout."""
    print(text(document))


def text(document: Any) -> str:
    """A document as JSON."""
    return json.dumps(codec.to_dict(document), indent=2, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has for a value of ours: a list for whatever is read bit by bit."""
    return list(value) if isinstance(value, Sequence) else codec.to_dict(value)


def fraction(text: str, flag: str) -> float | None:
    """Read ``1%`` or ``0.01`` as a fraction in [0, 1]; an empty text is None.

    Raises:
        UsageError: neither.
    """
    if not text:
        return None
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"not a share: {text}", flag, f"write it as {flag} 1% or {flag} 0.01")
    return value


def seconds(text: str, flag: str) -> float:
    """Read ``30s``, ``10m``, ``2h`` or a number of seconds; an empty text is 0.

    Raises:
        UsageError: none of these, or more than a day.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    number, factor = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1)
    if not text:
        return 0.0
    value = float(number) * factor if number.replace(".", "", 1).isdecimal() else -1.0
    if not 0 <= value <= _DAY:
        raise UsageError(f"not a span of time: {text}", flag, f"write it as {flag} 30s, {flag} 10m or {flag} 2h")
    return value


def rate(text: str, flag: str) -> float:
    """Read ``500k``, ``2M`` or a number as bytes per second; an empty text is 0, no limit.

    Raises:
        UsageError: none of these, or less than 20 kB/s, at which a push would look stalled.
    """
    units = {"k": 1e3, "M": 1e6}
    number, factor = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    if not text:
        return 0.0
    value = float(number) * factor if number.replace(".", "", 1).isdecimal() else 0.0
    if value < _LEAST_RATE:
        raise UsageError(f"not a rate: {text}", flag, f"write it as {flag} 500k or {flag} 2M; at least 20k")
    return value


def shapes(texts: list[str] | None) -> list[int] | dict[str, list[int]] | None:
    """Read ``3,224,224`` as the shape of one sample, or each ``NAME=1,3,224,224`` as that of an input.

    Raises:
        UsageError: not positive whole numbers, a name twice, or both kinds.
    """
    if not texts:
        return None
    flag = "--input-shape"
    fix = f"write {flag} image=1,3,224,224, once for each input, or {flag} 3,224,224"
    found: dict[str, list[int]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts) or name in found:
            raise UsageError(f"not a shape, or said twice: {text}", flag, fix)
        found[name] = [int(part) for part in parts]
    if "" in found and len(found) > 1:
        raise UsageError("one shape has no name", flag, fix)
    return found.get("", found)


def axes(texts: list[str] | None) -> dict[str, list[int]]:
    """Read each ``NAME=2,3`` as axes of an input; ``batch`` is axis 0 of all, under the name "".

    Raises:
        UsageError: neither.
    """
    found: dict[str, list[int]] = {}
    for text in texts or []:
        name, equals, places = text.rpartition("=")
        parts = [part.strip() for part in places.split(",")]
        if text == "batch":
            name, parts = "", ["0"]
        elif not equals or not name or not all(part.isdecimal() for part in parts):
            raise UsageError(
                f"not axes of an input: {text}", "--dynamic", "write --dynamic batch or --dynamic image=2,3"
            )
        found[name] = sorted({*found.get(name, []), *map(int, parts)})
    return found


def counts(text: str, flag: str, *, least: int = 1) -> list[int]:
    """Read ``1,2,4`` as whole numbers without repeats, in order.

    Raises:
        UsageError: not whole numbers, or one below ``least``.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) <= _MOST for part in parts):
        raise UsageError(f"not whole numbers from {least} on: {text}", flag, f"write them as {flag} 1,2,4")
    return list(dict.fromkeys(int(part) for part in parts))


def degrees(text: str, flag: str) -> float | None:
    """Read ``50`` or ``50C`` as degrees C; an empty text is None.

    Raises:
        UsageError: not a temperature a board can have.
    """
    if not text:
        return None
    number = text.strip().removesuffix("C").strip()
    value = float(number) if number.replace(".", "", 1).isdecimal() else -1.0
    if not 0 < value <= _HOTTEST:
        raise UsageError(f"not a temperature: {text}", flag, f"write it in degrees C, e.g. {flag} 50")
    return value


def names(text: str, flag: str) -> tuple[str, ...]:
    """Read ``a,b`` as names without repeats, in order.

    Raises:
        UsageError: nothing is named.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError("nothing is named", flag, f"name at least one, e.g. {flag} onnx")
    return found


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dict, for a document that adds keys of its own."""
    found = codec.to_dict(value)
    assert isinstance(found, dict)
    return found


def show_plan(plan: dict[str, Any], as_json: bool) -> None:
    """Show what a dry run found: one document, or a few lines."""
    if as_json:
        emit(plan)
        return
    runs = ", ".join(f"{name} on {runtime}" for name, runtime in zip(plan["formats"], plan["runtimes"], strict=True))
    typer.echo(f"model    {plan['model']['name']}, {plan['model']['parameters'] or '?'} parameters")
    typer.echo(f"recipe   {plan['recipe']}, as {runs}")
    typer.echo(f"target   {plan['target']}")
    typer.echo(f"measure  {plan['profile']['profile']}: at least {plan['least_measuring_seconds']:g} s in all")
    typer.echo(f"stages   {' -> '.join(plan['stages'])}")
