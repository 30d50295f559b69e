"""Find the first layer in which a file departs from another: in another format, precision, runtime, or on a board.

Both files are cut open: what flows inside them is put out as well, in copies that any runtime runs, on a board too. A
copy can't be fused as the file is (each tensor must exist), so what is found is a fault of the file and of the kernels,
not of a fusion; on a board the copies run as the release would, with the optimiser on.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import align, artifact, bench, isolate, plugins
from edgepipe.align import Seen
from edgepipe.artifact import Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Artifact, Preprocessing, RunOptions, TensorSpec

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.samples import Samples

MOST = 24  # tensors put out by one copy of a file
SAMPLES = 6
_TINY = 1e-12

Run = Callable[[Artifact, "dict[str, Any]"], "list[Any]"]


@dataclass(frozen=True)
class Limit:
    """Where a tensor departs: least cosine, and largest difference relative to the tensor's largest value.

    For what is quantised the second says little; there a tensor also departs where the share of noise in its power is
    at least ``noise`` and ``jump`` times that of the noisiest tensor it is computed from.
    """

    cosine: float
    relative: float
    noise: float = math.inf
    jump: float = math.inf


# float32 in another order of summation; float16 and bfloat16 keep 11 and 8 bits; int8 keeps 7, and adds up over layers.
LIMITS = {
    "float32": Limit(0.9999, 2e-3),
    "float16": Limit(0.999, 0.1),
    "int8": Limit(0.97, math.inf, noise=0.02, jump=8.0),
}


@dataclass(frozen=True)
class Layer:
    """A tensor held against its like: largest and mean difference, cosine, and whether it departs.

    ``layer`` and ``op`` made ``tensor``; ``like`` is the other file's tensor, made by ``like_layer``. ``layout`` says
    how its axes had to be moved to be compared. Numbers are null where the tensor is not finite.
    """

    layer: str
    op: str
    tensor: str
    like: str
    like_layer: str
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    relative: float | None
    departs: bool
    layout: str = ""


@dataclass(frozen=True)
class Departure:
    """The first layer that departs.

    ``before`` are the file's own layers without a like that feed it, ``between`` the other file's layers from its like
    back to those that agree: the fault is in one of ``layer`` and ``before``, which do the work of ``between``.
    """

    layer: str
    op: str
    before: list[str]
    between: list[str]
    text: str


@dataclass(frozen=True)
class Comparison:
    """Two files held against each other, layer by layer, in the order the second one computes.

    ``matched_by`` is "name" or "value"; ``unmatched`` counts tensors of the second file without a like. ``limit`` is
    the precision whose tolerance was applied, ``inputs`` says what was fed.
    """

    one: str
    other: str
    inputs: str
    limit: str
    matched_by: str
    unmatched: int
    layers: list[Layer] = field(default_factory=list)
    first: Departure | None = None


def on_host(artifact: Artifact, feeds: dict[str, Any]) -> list[Any]:
    """Run a file here, the runtime's optimiser off (see `edgepipe.verify`)."""
    from edgepipe import runner

    return runner.run_file(artifact, feeds, optimize=False).outputs


class OnBoard:
    """Runs files on a board as it would run a release; ``limit`` is the precision that its runtime fell to."""

    def __init__(self, client: BoardClient, options: RunOptions | None = None) -> None:
        self._client, self._options = client, options or RunOptions()
        self.limit = "float32"

    def __call__(self, artifact: Artifact, feeds: dict[str, Any]) -> list[Any]:
        """The outputs of one file.

        Raises:
            BoardError, LinkError: as `edgepipe.board.BoardClient.verify`.
        """
        content, digest = bench.blob({str(place): feeds[spec.name] for place, spec in enumerate(artifact.inputs)})
        self._client.push([*bench.files_of(artifact), (content, digest)])
        done = self._client.verify(bench.manifest_of(artifact), digest, self._options)
        if {"float16", "bfloat16"} & set(done.executed.kernels):
            self.limit = "float16"
        return self._client.arrays(done.outputs)


def observe(artifact: Artifact, samples: Samples, run: Run = on_host) -> list[Seen]:
    """Every real tensor of a file on these samples, in the order it is computed.

    Raises:
        UsageError: the format's files can't be cut open.
        BoardError: a copy that puts out a tensor more does not run.
    """
    try:
        module = plugins.load("formats", artifact.format, "tensors")
    except UsageError:
        raise UsageError(f"{artifact.format} files can't be compared layer by layer", artifact.path) from None
    feeds = samples.feeds(artifact)
    seen: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as name:
        made = isolate.call(
            f"{module.__name__}:cut", {"source": artifact.path, "folder": name, "most": MOST}, deadline=600.0
        )
        for number, files in enumerate(made["files"]):
            rows = made["tensors"][number * MOST : (number + 1) * MOST]
            part = _part(artifact, Path(name), files, rows)
            for row, values in zip(rows, run(part, feeds), strict=True):
                if values.dtype.kind == "f":
                    alias = row.get("alias", row["name"])
                    seen.append(Seen(row["name"], alias, row["layer"], row["op"], tuple(row["inputs"]), values))
    if not seen:
        raise UsageError("no tensor of the file depends on its inputs", artifact.path, "it computes a constant")
    return seen


def _part(whole: Artifact, folder: Path, files: list[str], rows: list[dict[str, Any]]) -> Artifact:
    outputs = [TensorSpec(row["name"], []) for row in rows]
    output = Output(files, whole.inputs, outputs, Preprocessing(), whole.opset, whole.ir_version)  # done already
    return artifact.build(
        whole.format,
        folder,
        output,
        model=whole.model,
        recipe=whole.recipe,
        parent_sha256=whole.sha256,
    )


def compare(one: list[Seen], other: list[Seen], limit: str, names: tuple[str, str], inputs: str) -> Comparison:
    """Hold what flows in one file against what flows in another; ``limit`` is a key of `LIMITS`.

    Raises:
        IntegrityError: no tensor of one is like any of the other.
    """
    paired = align.pair(one, other)
    if not paired.pairs:
        raise IntegrityError("the two files have no tensor in common", names[1], "it is another model")
    likes = {after: before for before, after in paired.pairs}
    noise: dict[str, float] = {}  # by tensor of the second file: the worst that came into it or arose in it
    layers, first = [], None
    for place, seen in enumerate(other):
        came = max((noise.get(name, 0.0) for name in seen.inputs), default=0.0)
        noise[seen.name] = came
        if place not in likes:
            continue
        like = one[likes[place]]
        row, share = _held(seen, like, LIMITS[limit], came, moves=paired.by == "value")
        noise[seen.name] = max(came, share)
        layers.append(row)
        if row.departs and first is None:
            earlier = [at for at in range(place) if at in likes]
            before = _back(seen, other, {other[at].name for at in earlier})
            between = _back(like, one, {one[likes[at]].name for at in earlier})
            first = _departure(row, before, [like.layer, *between])
    return Comparison(names[0], names[1], inputs, limit, paired.by, len(other) - len(layers), layers, first)


def _held(seen: Seen, like: Seen, limit: Limit, came: float, *, moves: bool) -> tuple[Layer, float]:
    """Compare two tensors; also the share of noise in the power of the second."""
    import numpy as np

    values, layout = align.laid_out(seen.values, like.values, moves=moves)
    a, b = like.values.astype(np.float64).ravel(), values.astype(np.float64).ravel()
    row = Layer(seen.layer, seen.op, seen.name, like.name, like.layer, None, None, None, None, True, layout)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return row, math.inf
    a, b = a[finite], b[finite]
    if not a.size:
        return replace(row, max_abs=0.0, mean_abs=0.0, cosine=1.0, relative=0.0, departs=False), 0.0
    gap = np.abs(a - b)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = min(float(a @ b) / norm, 1.0) if norm else float(np.allclose(a, b, atol=_TINY))
    relative = float(gap.max()) / max(float(np.abs(a).max()), _TINY)
    share = float(np.square(gap).sum()) / max(float(np.square(a).sum()), _TINY)
    departs = relative > limit.relative or cosine < limit.cosine or (share > limit.noise and share > limit.jump * came)
    most, mean = float(gap.max()), float(gap.mean())
    return replace(row, departs=departs, max_abs=most, mean_abs=mean, cosine=cosine, relative=relative), share


def _back(start: Seen, seen: list[Seen], agree: set[str]) -> list[str]:
    """The layers from the inputs of a tensor back to tensors that agree."""
    makers = {each.name: each for each in seen}
    found: list[str] = []
    ends, visited = list(start.inputs), {start.name}
    while ends:
        name = ends.pop()
        if name in agree or name in visited or name not in makers:
            continue
        visited.add(name)
        found.append(makers[name].layer)
        ends += makers[name].inputs
    return [layer for layer in dict.fromkeys(found) if layer != start.layer]


def _departure(row: Layer, before: list[str], between: list[str]) -> Departure:
    what = "it is not finite where its like is" if row.cosine is None else f"cosine {row.cosine:.6f}"
    if row.relative is not None:
        what += f", up to {row.relative:.2g} of its largest value off"
    text = f"{row.layer} ({row.op}) departs first, from {row.like_layer}: {what}"
    return Departure(row.layer, row.op, before, between, text)
