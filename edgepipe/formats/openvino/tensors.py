"""The layers of an OpenVINO file: which it wants computed in integers, and what flows between them."""

from __future__ import annotations

from typing import Any

_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "ShuffleChannels", "StridedSlice", "Slice", "Pad")
_WIDENING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
_BYTES = 256  # levels of an 8-bit quantiser


def integer_layers(path: str) -> int:
    """How many layers the file says are to be computed on 8-bit activations and weights (runs in the child)."""
    import openvino

    model = openvino.Core().read_model(path)
    layers = [op for op in model.get_ordered_ops() if op.get_type_name() in _LAYERS]
    return sum(all(_in_bytes(op.input_value(port).get_node()) for port in (0, 1)) for op in layers)


def _in_bytes(node: Any) -> bool:
    """Whether a tensor comes from an 8-bit quantiser, or is a constant of 8-bit numbers."""
    while node.get_type_name() in {*_MOVING, *_WIDENING}:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        return int(node.get_attributes()["levels"]) <= _BYTES
    return node.get_type_name() == "Constant" and node.get_element_type().to_string() in ("i8", "u8")


def precision(path: str) -> str:
    """The coarsest precision the file stores weights in: int8 for integers of any width, float16, or float32."""
    import openvino

    ops = openvino.Core().read_model(path).get_ops()
    stored = [op for op in ops if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1]
    kinds = {op.get_element_type().to_string() for op in stored}
    if kinds & {"i8", "u8", "i4", "u4", "i16", "u16"} or any(op.get_type_name() == "FakeQuantize" for op in ops):
        return "int8"
    return "float16" if kinds & {"f16", "bf16"} else "float32"


def tensors(path: str) -> list[dict[str, Any]]:
    """Float tensors that depend on the inputs, in the order they are computed (runs in the child).

    Each is ``{"name", "layer": the node's name, "op": its type, "inputs": tensors the node reads}``.
    """
    import openvino

    return [
        {
            "name": _name(port),
            "layer": port.get_node().get_friendly_name(),
            "op": port.get_node().get_type_name(),
            "inputs": [_name(value) for value in port.get_node().input_values()],
        }
        for port in _ports(openvino.Core().read_model(path))
    ]


def _ports(model: Any) -> list[Any]:
    alive: set[str] = set()
    found = []
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if op.get_type_name() == "Parameter" or any(
            value.get_node().get_friendly_name() in alive for value in op.input_values()
        ):
            alive.add(name)
            if op.get_type_name() not in ("Parameter", "Result"):
                found += [port for port in op.outputs() if port.get_element_type().to_string() in ("f32", "f16", "f64")]
    return found


def _name(port: Any) -> str:
    """The tensor's own name (that of the ONNX file it came from, where it did), else node and port."""
    return min(port.get_names(), default=f"{port.get_node().get_friendly_name()}:{port.get_index()}")


def cut(source: str, folder: str, most: int) -> dict[str, Any]:
    """Write copies of the model that put out what flows inside it, ``most`` tensors each (runs in the child).

    Returns ``{"tensors": see `tensors`, "files": names in ``folder`` of each copy, in the tensors' order}``.
    """
    from pathlib import Path

    import openvino

    rows, files = tensors(source), []
    for start in range(0, len(rows), most):
        model = openvino.Core().read_model(source)
        ports = {_name(port): port for port in _ports(model)}
        names = [row["name"] for row in rows[start : start + most]]
        for name in names:
            ports[name].get_tensor().add_names({name})
        part = openvino.Model([ports[name] for name in names], model.get_parameters(), "layers")
        files.append([f"part{start}.xml", f"part{start}.bin"])
        openvino.save_model(part, str(Path(folder) / files[-1][0]), compress_to_fp16=False)
    return {"tensors": rows, "files": files}
