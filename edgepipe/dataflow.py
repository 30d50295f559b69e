"""A network as the graph of its operations, by PyTorch's exporter: what is done to which tensor by which parameter.

The exporters of file formats start from the same graph, so what is seen here is what will be in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.training import Context

# The layers whose weights are quantised: operation -> (axis of the output channels, of the input channels). A
# transposed convolution keeps them the other way round.
LAYERS = {
    "conv1d": (0, 1),
    "conv2d": (0, 1),
    "conv3d": (0, 1),
    "linear": (0, 1),
    "conv_transpose1d": (1, 0),
    "conv_transpose2d": (1, 0),
}


def trace(network: Any, context: Context, batch: int = 2) -> Any:
    """The graph of ``network`` for a fixed batch: a torch.fx GraphModule on its own parameters, that returns a tuple.

    Parameters and buffers are "get_attr" nodes, named as in state_dict; ``node.meta["val"]`` has shape and type.

    Raises:
        UsageError: the network can't be traced.
    """
    import torch

    try:
        program = torch.export.export(network.eval(), context.example(batch), strict=False)
    except Exception as error:  # the tracer raises a dozen kinds
        what = f"the network can't be traced: {type(error).__name__}: {str(error)[:300]}"
        raise UsageError(what, "torch.export", "remove branches and shapes that depend on the data") from error
    return _with_names(network, program)


def operation(node: Any) -> str:
    """The plain name of what a node does ("conv2d", "add"); "" for anything but an operation of PyTorch's."""
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return ""
    return str(node.target._schema.name).rpartition("::")[2]


def value(traced: Any, name: str) -> Any:
    """The parameter or buffer of a traced network by its name in state_dict."""
    owner, _, last = name.rpartition(".")
    return getattr(traced.get_submodule(owner), last)


def shape(node: Any) -> list[int]:
    """The shape of the tensor a node makes, batch first; empty where it makes something else."""
    value = node.meta.get("val")
    return [int(size) for size in value.shape] if hasattr(value, "shape") else []


def argument(node: Any, index: int, name: str, default: Any = None) -> Any:
    """An argument of an operation, given by place or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def batch_norm_of(node: Any) -> Any:
    """The batch normalisation (a node) that exporters fold into a layer, because it alone reads its output, or None."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or operation(user) != "batch_norm":
        return None
    frozen = argument(user, 3, "running_mean") is not None and not argument(user, 5, "training")
    return user if frozen else None


def layer_name(parameter: str) -> str:
    """``stem.0.weight`` -> ``stem.0``, ``attention.in_proj_weight`` -> ``attention.in_proj``."""
    return parameter.removesuffix("weight").rstrip("._")


def _with_names(network: Any, program: Any) -> Any:
    """The program's graph with "get_attr" nodes in place of the inputs into which the exporter lifts parameters."""
    import torch

    signature = program.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted |= signature.inputs_to_lifted_tensor_constants
    values = {**program.constants, **dict(network.named_buffers(remove_duplicate=False))}
    values |= dict(network.named_parameters(remove_duplicate=False))
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            if node.users:
                copies[node] = graph.get_attr(lifted[node.name])
                copies[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(torch.fx.map_arg(node.args[0], lambda item: copies[item]))
        else:
            copies[node] = graph.node_copy(node, lambda item: copies[item])
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    return torch.fx.GraphModule({name: values[name] for name in used}, graph)
