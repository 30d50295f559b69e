"""A language model in the chain of `edgepipe.deploy`: where it comes from, its forms as files, the text to judge it by.

A GGUF has no module to compress and its files are written at once (see `edgepipe.llm.files`), so the recipe is the form
of its weights. All else, from the parity ladder to the release on the board, is that of any model.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import artifact, cache, plugins, recipe, verify
from edgepipe.agent.runtimes import _decoder
from edgepipe.convert import Export
from edgepipe.data import Dataset
from edgepipe.errors import UsageError
from edgepipe.export import Made
from edgepipe.llm import files, source
from edgepipe.model import Model
from edgepipe.record import ModelFacts, Step
from edgepipe.schema import Artifact, FileRef, Preprocessing, TensorSpec

if TYPE_CHECKING:
    from edgepipe.artifact import ExportOptions
    from edgepipe.progress import Progress

PROMPT, FOLLOWING = _decoder.PROMPT, _decoder.FOLLOWING  # tokens
TASK, FORMAT = "language-modelling", "gguf"
WRITTEN = ("onnx",)
TEXT = "lee"
TOKENS = {"shipped": 1024, "full": 2048, "auto": 2048}  # of the text, by evaluation set
WINDOW = 256  # tokens seen at once; the last half of its predictions count, and the next window begins so much later
CONTEXT = 1024
_FORMS = {recipe.BASELINE: "fp32", "int8": "int8", "int4": "int4"}
_SIZES = "sizes.json"


def knows(ref: str) -> bool:
    """Whether ``ref`` names a language model: one of `source.MODELS`, or the path of a GGUF."""
    return ref in source.MODELS or ref.lower().endswith(".gguf")


def facts(ref: str) -> ModelFacts:
    """Who the model is, as far as that can be said without fetching it; what caches go by is the hash of its file.

    Raises:
        UsageError: there is no such file.
    """
    if ref in source.MODELS:
        return _facts(ref, source.MODELS[ref].sha256)
    path = Path(ref).expanduser()
    if not path.is_file():
        raise UsageError("no such model file", ref, "check the path")
    return _facts(re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).lstrip(".-")[:40] or "model", cache.hash_file(path))


def _facts(name: str, sha256: str) -> ModelFacts:
    return ModelFacts(name, TASK, sha256, None, None, "multiply-accumulates of a token depend on those before it")


def check(text: str, format_names: Iterable[str], options: ExportOptions) -> files.Variant:
    """The form of the weights that the recipe ``text`` asks for.

    Raises:
        UsageError: no form is that, or the format or an option is none of a language model's.
    """
    for name in format_names:
        if name not in WRITTEN:
            what = f"language models are written as {', '.join(WRITTEN)} alone, not as {name}"
            raise UsageError(what, "--to", f"leave {name} out")
    if options.batch != 1:
        raise UsageError("a language model decodes one sequence at a time", "--batch", "leave it out")
    if options.opset or options.dynamic or options.layout or options.fold or options.synthetic:
        what = "the opset and the inputs of a language model's file are fixed, and nothing is calibrated"
        raise UsageError(what, "--opset, --dynamic, --layout", "leave them out")
    steps = recipe.plan(recipe.parse(text), WRITTEN[0])
    known = f"language models are made by {', '.join(_FORMS)} and int4:group=16 to 256"
    if steps.network or len(steps.file) > 1 or any(step.name not in _FORMS for step in steps.file):
        raise UsageError(f"{known}, not by {text}", f"recipe {text}", "choose one of these")
    if not steps.file:
        return files.variant(_FORMS[recipe.BASELINE])
    step = steps.file[0]
    if step.given - ({"group"} if step.name == "int4" else set()):
        raise UsageError(f"{known}, without {', '.join(sorted(step.given))}", f"recipe {text}", "leave it out")
    return files.variant(f"{step.name}-g{step.params['group']}" if step.given else _FORMS[step.name])


def load(ref: str, progress: Progress) -> Model:
    """Fetch a language model and look at its header.

    Raises:
        UsageError: it is not one that is read here.
        LinkError, IntegrityError: it can't be fetched, or is not what is expected.
    """
    from edgepipe.llm import gguf, sizes

    path = source.model(ref, progress)
    header = gguf.read(path)
    sizes.sizes(header, CONTEXT)
    parameters = sum(prod(tensor.shape) for tensor in header.tensors.values())
    found = replace(facts(ref), parameters=parameters)
    return Model(
        name=found.name,
        task=TASK,
        folder=path.parent,
        format=FORMAT,
        network=None,
        path=path,
        inputs=_inputs(),
        outputs=_outputs(),
        preprocessing=Preprocessing(dtype="int64"),
        raw_layout="",
        labels=[],
        data=None,
        metric=plugins.task(TASK).METRIC,
        floor=None,
        facts=found,
        identity=found.sha256,
        ref=ref,
    )


def _inputs() -> list[TensorSpec]:
    """What a caller feeds: the caches are the runtime's own affair."""
    tokens, scored = _decoder.FED
    return [TensorSpec(tokens, [1, -1], "int64"), TensorSpec(scored, [1], "int64")]


def _outputs() -> list[TensorSpec]:
    return [TensorSpec(_decoder.ANSWER, [1], "float64")]


def evaluation(model: Model, which: str, progress: Progress) -> Dataset:
    """Windows of a text as the model's own tokens, [windows, tokens]; labels say how many predictions of each count.

    Raises:
        UsageError: no such evaluation set, or the text has fewer than two windows of it.
    """
    import numpy as np

    from edgepipe.llm import gguf, sizes
    from edgepipe.llm.text import Text

    if which not in TOKENS:
        raise UsageError(f"no such evaluation set: {which}", "evaluation", f"use {', '.join(TOKENS)}")
    assert model.path is not None
    header = gguf.read(model.path)
    window = min(WINDOW, sizes.sizes(header, CONTEXT).context)
    stride = window // 2
    tokens = Text(header).encode(source.text(TEXT, progress))[: TOKENS[which]]
    starts = range(0, len(tokens) - window + 1, max(stride, 1))
    if len(starts) < 2 or stride < 1:  # noqa: PLR2004  an interval needs two
        raise UsageError(f"{len(tokens)} tokens of {TEXT} make no two windows of {window}", model.name)
    parts = np.array([tokens[start : start + window] for start in starts], np.int64)
    counts = np.full(len(parts), stride, np.int64)
    name = f"{len(tokens)} tokens of {TEXT}, windows of {window}, stride {stride}"
    digest = hashlib.sha256(name.encode() + parts.tobytes()).hexdigest()
    return Dataset(name, parts, counts, "", digest, {_decoder.FED[1]: counts})


def prepare(model: Model, text: str, dataset: Dataset, options: ExportOptions, progress: Progress) -> Export:
    """Make the file in the form that the recipe ``text`` asks for, beside the one in float, and climb the host's rungs.

    The float file is held against the network itself, on logits, when it is made; see `files.made`.

    Raises:
        UsageError: the recipe is no form.
        IntegrityError: the GGUF is damaged, or a file does not compute what it should.
    """
    form, score = check(text, WRITTEN, options), verify.scorer(model, dataset)
    forms = {recipe.BASELINE: files.variant(_FORMS[recipe.BASELINE])}
    if form.bits != forms[recipe.BASELINE].bits:
        forms[text] = form
    made, steps = [], []
    for name, each in forms.items():
        began = time.monotonic()
        found, packed = _file(model, name, each, progress)
        made.append(found)
        with progress.task(f"verify {model.name} {name} on the host", "s"):
            accuracy = score(found) if score else None
        steps.append(
            Step(
                "export" if name == recipe.BASELINE else name,
                {"group": each.group} if each.group else {},
                bytes=found.bytes,
                accuracy=accuracy,
                seconds=round(time.monotonic() - began, 3),
                note=_note(model) if name == recipe.BASELINE else "",
                bytes_gzip=found.bytes_gzip,
                bytes_zstd=packed["zstd"],
                parameters=model.facts.parameters,
            )
        )
    done = Made(made[-1], steps, made, model, cached=False)
    return Export(model, done, verify.climb(model, done, dataset), made[-1])


def _note(model: Model) -> str:
    """What a reader must know of the source's own weights."""
    from edgepipe.llm import gguf, measure

    assert model.path is not None
    return measure.NOTE if measure.quantised(gguf.read(model.path)) else ""


def _file(model: Model, text: str, form: files.Variant, progress: Progress) -> tuple[Artifact, dict[str, int]]:
    """A form as an artifact, and its bytes as gzip and zstd make them, which are counted once."""
    assert model.path is not None
    path = files.made(model.path, form, CONTEXT, progress)
    folder = path.parent
    names = [path.name, *sorted(part.name for part in folder.glob(f"{path.name}.*"))]
    refs = [FileRef(name, cache.hash_file(folder / name), (folder / name).stat().st_size) for name in names]

    def count(to: Path) -> None:
        with progress.task(f"pack {model.name} {text}, to know its size", "s"):
            found = {
                "gzip": sum(artifact.gzip_size(folder / name) for name in names),
                "zstd": sum(artifact.zstd_size(folder / name) for name in names),
            }
        (to / _SIZES).write_text(json.dumps(found), encoding="utf-8")

    kept, _ = cache.Cache().make(cache.key("packed-sizes", files=[ref.sha256 for ref in refs]), count)
    packed: dict[str, int] = json.loads((kept / _SIZES).read_text(encoding="utf-8"))
    found = Artifact(
        format=WRITTEN[0],
        path=str(path.absolute()),
        bytes=sum(ref.bytes for ref in refs),
        bytes_gzip=packed["gzip"],
        sha256=refs[0].sha256,
        files=refs,
        inputs=_inputs(),
        outputs=_outputs(),
        preprocessing=Preprocessing(dtype="int64"),
        opset=files.OPSET,
        ir_version=files.IR,
        model=model.name,
        recipe=text,
        parent_sha256=model.facts.sha256,
    )
    return found, packed
