"""What a torch module is made of, once it is traced."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgepipe.formats.torch.load import example


def of_module(module: Any, inputs: Any) -> dict[str, Any]:
    """Operators of the traced program with how often, and its tensors; no operators where it can't be traced."""
    import torch

    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    rows = [_row(name, value, constant=True) for name, value in state.items()]
    try:
        nodes = list(torch.export.export(module, example(inputs), strict=False).graph.nodes)
    except Exception as error:  # the tracer raises a dozen kinds
        return {"ops": {}, "tensors": rows, "metadata": {"not_traced": str(error)[:200], "torch": torch.__version__}}
    called = [node for node in nodes if node.op == "call_function"]
    rows += [_row(n.name, n.meta["val"]) for n in called if isinstance(n.meta.get("val"), torch.Tensor)]
    return {
        "ops": dict(Counter(str(node.target) for node in called)),
        "tensors": rows,
        "metadata": {"torch": torch.__version__, "class": type(module).__name__},
    }


def _row(name: str, value: Any, *, constant: bool = False) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape, "constant": constant}
