"""Fine-tuning after a lossy step: on the task's own loss, with the float model as a teacher beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.training import Keep, fit

if TYPE_CHECKING:
    from edgepipe.training import Context

RATE = 1e-3
# Hinton, Vinyals, Dean 2015: softened targets carry more than labels; their gradients shrink with 1 / T^2.
_TEMPERATURE, _SOFT = 4.0, 0.7


def recover(network: Any, context: Context, epochs: int, keep: Keep, rate: float = RATE) -> str:
    """Train ``network`` in place and return one line on it; the line says why where there was no training."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    loss, teacher = context.loss, context.teacher
    if epochs == 0:
        return "not fine-tuned"
    if context.training is None or loss is None:
        return "not fine-tuned: the model has no training data"

    def objective(inputs: Any, outputs: list[Any], labels: Any) -> Any:
        with torch.no_grad():
            told = teacher(inputs)
        wanted = log_softmax((told[0] if isinstance(told, (list, tuple)) else told) / _TEMPERATURE, 1)
        given = log_softmax(outputs[0] / _TEMPERATURE, 1)
        soft = kl_div(given, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2
        return _SOFT * soft + (1 - _SOFT) * loss(outputs, labels)

    return fit(network, context, objective, epochs=epochs, rate=rate, keep=keep)


def also(keep: Keep, *, zeros: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Keep:
    """What ``keep`` says and more."""
    return Keep(tuple(sorted({*keep.zeros, *zeros})), tuple(sorted({*keep.shared, *shared})))


def weighted(network: Any) -> dict[str, Any]:
    """The convolutions and linear layers of a network by name.

    Raises:
        UsageError: there is none.
    """
    from torch import nn

    from edgepipe.errors import UsageError

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    found = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    if not found:
        what = "the network has no convolution and no linear layer"
        raise UsageError(what, "network", "use a recipe on the file: fp16, dynamic, int8")
    return found
