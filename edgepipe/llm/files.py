"""From a GGUF to ONNX files with a key-value cache: in float, and with their weights in 8 or 4 bits.

Each function that needs torch or onnx runs in a child process; `made` keeps the files by what went into them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe import cache, isolate
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.progress import Progress

NAME = "model.onnx"
_VARIANT = re.compile(r"(int4|int8)(?:-g(16|32|64|128|256))?\Z")
_GROUP = 32
ACCURACY = 4
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_SPREAD = 1e-3  # of logits that reach some tens: what another order of the same sums may cost
_PROBE = (9, 1, 4)  # tokens of the calls that the exported file is compared on, each after those before


@dataclass(frozen=True)
class Variant:
    """How weights are kept: ``bits`` 32 is as exported. ``group`` weights share a scale and a zero point."""

    name: str
    bits: int
    group: int


def variant(name: str) -> Variant:
    """Read ``fp32``, ``int8``, ``int4`` or ``int4-g64``; without a group it is 32.

    Raises:
        UsageError: none of these.
    """
    if name == "fp32":
        return Variant(name, 32, 0)
    match = _VARIANT.match(name)
    if not match:
        fix = "choose of fp32, int8, int4, or with a group as in int4-g128 (16, 32, 64, 128 or 256)"
        raise UsageError(f"no such form of the weights: {name}", "--weights", fix)
    return Variant(name, int(match[1][3:]), int(match[2] or _GROUP))


def made(gguf: Path, how: Variant, context: int, progress: Progress) -> Path:
    """The ONNX file of a model with its weights as ``how`` says; made once, then taken from the cache.

    Raises:
        UsageError: the GGUF is not one that is read here.
        IntegrityError: the GGUF is damaged, or the exported file does not compute what the network does.
    """
    here = Path(__file__).parent
    source = {
        "gguf": cache.hash_file(gguf),
        "context": context,
        "tools": cache.versions(_TOOLS),
        "code": cache.code(here / "files.py", here / "network.py", here / "gguf.py"),
    }

    def export(folder: Path) -> None:
        with progress.task("export to ONNX", "s") as task:
            kwargs = {"gguf": str(gguf), "context": context, "folder": str(folder)}
            isolate.call("edgepipe.llm.files:export", kwargs, tick=task.update)

    plain, _ = cache.Cache().make(cache.key("llm-onnx", **source), export)
    if how.bits == 32:  # noqa: PLR2004  a float's
        return plain / NAME

    def pack(folder: Path) -> None:
        with progress.task(f"weights to {how.name}", "s") as task:
            kwargs = {"path": str(plain / NAME), "bits": how.bits, "group": how.group, "folder": str(folder)}
            isolate.call("edgepipe.llm.files:quantize", kwargs, tick=task.update)

    packed, _ = cache.Cache().make(cache.key("llm-weights", bits=how.bits, group=how.group, **source), pack)
    return packed / NAME


def export(gguf: str, context: int, folder: str) -> dict[str, Any]:
    """Write ``model.onnx`` to ``folder`` and compare it with the network over three calls. Runs in a child.

    Raises:
        IntegrityError: the file answers otherwise than the network.
    """
    import torch

    from edgepipe.llm import gguf as reader
    from edgepipe.llm import network

    model = network.load(reader.read(Path(gguf)), context)
    s, path = model.sizes, str(Path(folder) / NAME)
    past = [torch.zeros(1, s.kv_heads, 5, s.head) for _ in range(2 * s.layers)]
    given = (torch.zeros(1, 3, dtype=torch.int64), torch.tensor([1, 2]), past)
    step, rows, before = torch.export.Dim("step"), torch.export.Dim("rows"), torch.export.Dim("before")
    kinds = [f"{kind}.{layer}" for layer in range(s.layers) for kind in ("key", "value")]
    with torch.no_grad():
        torch.onnx.export(
            model,
            given,
            path,
            dynamo=True,
            external_data=False,
            input_names=["tokens", "rows", *(f"past_{kind}" for kind in kinds)],
            output_names=["logits", *(f"next_{kind}" for kind in kinds)],
            dynamic_shapes={"tokens": {1: step}, "rows": {0: rows}, "past": [{2: before} for _ in past]},
            verbose=False,
        )
        spread = _compare(model, path)
    if not spread < _SPREAD:
        raise IntegrityError(f"the exported file's logits are off by {spread:.2g}", path, "please report this model")
    return {"spread": spread}


def _compare(model: Any, path: str) -> float:
    """The largest difference of logits between the file and the network: a prompt, one token, then several."""
    import torch

    from edgepipe.llm.decode import Decoder

    decoder, kept, worst = Decoder(path, 1), model.empty(), 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _PROBE:
        tokens = torch.randint(model.sizes.vocabulary, (1, count), generator=generator)
        rows = torch.arange(count)
        expected, kept = model(tokens, rows, kept)
        logits = torch.from_numpy(decoder.step(tokens[0].tolist(), rows.tolist()))
        worst = max(worst, float((logits - expected).abs().max()))
    return worst


def quantize(path: str, bits: int, group: int, folder: str, accuracy: int = ACCURACY) -> dict[str, Any]:
    """Write the file with the weights of each product in ``bits`` bits, and the embedding in 8. Runs in a child.

    Round to nearest with a scale and a zero point for each ``group`` weights of an output. The embedding has a scale
    for each token; onnxruntime's own quantiser would leave it in float, and the output layer that shares it as well.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model = onnx.load(path)
    _untie(model.graph)
    config = DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=False, accuracy_level=accuracy, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(Path(folder) / NAME), False)
    return {}


def _untie(graph: Any) -> None:
    """Give the output layer weights of its own, and keep the rows of the embedding in int8 with a scale each."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        source = weights.get(node.input[0]) if node.input else None
        if node.op_type == "Transpose" and source is not None:
            turned = np.ascontiguousarray(numpy_helper.to_array(source).T)
            graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        elif node.op_type == "Gather" and source is not None and node.input[1] == "tokens":
            table, name = numpy_helper.to_array(source), source.name
            scale = np.maximum(np.abs(table).max(1, keepdims=True) / 127, np.float32(1e-12)).astype(np.float32)
            rows = np.rint(table / scale).astype(np.int8)
            graph.initializer.extend(
                [numpy_helper.from_array(rows, f"{name}_q8"), numpy_helper.from_array(scale, f"{name}_s8")]
            )
            nodes += [
                helper.make_node("Gather", [f"{name}_q8", "tokens"], [f"{name}_row"]),
                helper.make_node("Cast", [f"{name}_row"], [f"{name}_float"], to=TensorProto.FLOAT),
                helper.make_node("Gather", [f"{name}_s8", "tokens"], [f"{name}_scale"]),
                helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], list(node.output)),
            ]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
