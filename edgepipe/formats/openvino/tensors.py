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


def expose(source: str, target: str, names: list[str]) -> list[str]:
    """Write the model with these tensors as its only outputs; return the names of the files (runs in the child)."""
    from pathlib import Path

    import openvino

    model = openvino.Core().read_model(source)
    ports = {_name(port): port for port in _ports(model)}
    for name in names:
        ports[name].get_tensor().add_names({name})
    cut = openvino.Model([ports[name] for name in names], model.get_parameters(), "layers")
    openvino.save_model(cut, target, compress_to_fp16=False)
    path = Path(target)
    return [path.name, path.with_suffix(".bin").name]
