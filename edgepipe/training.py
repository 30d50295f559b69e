"""What a step that changes the network is given and hands back, and the one training loop they share.

A step gets a network (a copy it may change in place) and a `Context`; it returns `Changed`. Whatever trains calls
`fit`, which holds on to what earlier steps bought: weights they zeroed stay zero, weights they shared stay shared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.schema import TensorSpec

BATCH = 128
SEED = 0
_WARM_UP = 0.1  # share of all steps over which the learning rate rises
_DECAY = 1e-4  # of AdamW (Loshchilov and Hutter 2019), on matrices and kernels alone


@dataclass(frozen=True)
class Examples:
    """Samples as they are stored (raw, first axis samples), their labels or None, and how a batch of them is prepared.

    ``prepare`` turns raw samples into the network's input, float32 of shape [samples, ...].
    """

    inputs: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    prepare: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    name: str = ""

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Any) -> tuple[Any, Any]:
        """The tensors (inputs [n, ...], labels [n] or None) of the samples at ``indices``."""
        import torch

        inputs = torch.from_numpy(self.prepare(self.inputs[indices]))
        return inputs, None if self.labels is None else torch.from_numpy(self.labels[indices])

    def batches(self, size: int = BATCH, generator: Any = None) -> Iterator[tuple[Any, Any]]:
        """All samples in batches, shuffled by a torch ``generator`` if one is given; a short last batch is left out."""
        import torch

        count = len(self)
        size = min(size, count)
        order = torch.randperm(count, generator=generator) if generator else torch.arange(count)
        for start in range(0, count - size + 1, size):
            yield self.take(order[start : start + size].numpy())


@dataclass(frozen=True)
class Keep:
    """Names of parameters (as in state_dict) whose zeros stay zero, and of those whose equal values stay equal."""

    zeros: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a step may use.

    ``teacher`` is the float model the recipe began with, frozen and in eval mode. ``loss(outputs, labels)`` is the
    task's, a scalar tensor; None where the task has none. ``update(done, total, text)`` tells a person how far it is.
    """

    teacher: Any
    inputs: list[TensorSpec]
    calibration: Examples | None = None
    training: Examples | None = None
    loss: Callable[[list[Any], Any], Any] | None = None
    keep: Keep = field(default_factory=Keep)
    update: Callable[[float, float, str], None] = lambda *_: None

    def example(self, batch: int = 1) -> tuple[Any, ...]:
        """Zeros of the inputs' shapes and types."""
        import torch

        return tuple(torch.zeros([batch, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in self.inputs)


@dataclass(frozen=True)
class Changed:
    """A step's result: the network, one line on what was done, the share it was asked to zero, what is to be kept."""

    network: Any
    note: str = ""
    sparsity: float | None = None
    keep: Keep = field(default_factory=Keep)


def outputs_of(result: Any) -> list[Any]:
    """A module's result as a list of tensors."""
    return list(result) if isinstance(result, (list, tuple)) else [result]


def fit(
    network: Any,
    context: Context,
    objective: Callable[[Any, list[Any], Any], Any],
    *,
    epochs: int,
    rate: float,
    examples: Examples | None = None,
    keep: Keep | None = None,
) -> str:
    """Train ``network`` in place with AdamW and a cosine schedule, and leave it in eval mode.

    ``objective(inputs, outputs, labels)`` is the loss of one batch. ``examples`` are the training set unless given.

    Returns:
        One line: epochs, samples, the first and the last epoch's mean loss.

    Raises:
        UsageError: there is no training set.
        IntegrityError: the loss is not finite.
    """
    import torch

    if (samples := examples or context.training) is None:
        raise UsageError("there is nothing to train on", "training", "name data in model.toml, [data] training")
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    holder = _Holder(network, keep or context.keep)
    total = epochs * max(1, len(samples) // min(BATCH, len(samples)))
    optimiser = torch.optim.AdamW(_groups(network), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=total, pct_start=_WARM_UP, cycle_momentum=False
    )
    losses: list[float] = []
    network.train()
    for epoch in range(epochs):
        for inputs, labels in samples.batches(generator=generator):
            loss = objective(inputs, outputs_of(network(inputs)), labels)
            optimiser.zero_grad()
            loss.backward()
            holder.gradients()
            optimiser.step()
            holder.weights()
            schedule.step()
            losses.append(float(loss.detach()))
            context.update(len(losses), total, f"epoch {epoch + 1} of {epochs}, loss {losses[-1]:.3f}")
        if not math.isfinite(losses[-1]):
            raise IntegrityError("training diverged: the loss is not finite", f"epoch {epoch + 1}", "use a lower rate")
    network.eval()
    return f"{epochs} epochs over {len(samples)} samples ({samples.name}), {_ends(losses, total // epochs)}"


def _ends(losses: list[float], size: int) -> str:
    """The mean loss of the first and of the last epoch."""
    return f"loss {statistics.fmean(losses[:size]):.3f} -> {statistics.fmean(losses[-size:]):.3f}"


def fine_tune(network: Any, context: Context, *, epochs: int, rate: float, keep: Keep | None = None) -> str:
    """`fit` on the task's own loss; says why not where there is nothing to train on."""
    if epochs == 0:
        return "not fine-tuned"
    loss = context.loss
    if context.training is None or loss is None:
        return "not fine-tuned: the model has no training data"
    return fit(network, context, lambda _, outputs, labels: loss(outputs, labels), epochs=epochs, rate=rate, keep=keep)


def _groups(network: Any) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases and the scales of normalisations have none."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": _DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


class _Holder:
    """Puts weights back where an earlier step wants them, after every step of the optimiser."""

    def __init__(self, network: Any, keep: Keep) -> None:
        import torch

        named = dict(network.named_parameters())
        self._masks = [(named[name], (named[name].detach() != 0)) for name in keep.zeros if name in named]
        self._shared = []
        for name in keep.shared:
            if name in named:
                values, places = torch.unique(named[name].detach(), return_inverse=True)
                self._shared.append((named[name], places.flatten(), len(values)))

    def gradients(self) -> None:
        """Give all weights of one shared value the same gradient, their mean."""
        for parameter, places, count in self._shared:
            if parameter.grad is not None:
                parameter.grad.copy_(_means(parameter.grad, places, count))

    def weights(self) -> None:
        """Make zeros zero again, and shared values one value (the optimiser's own state may have parted them)."""
        import torch

        with torch.no_grad():
            for parameter, places, count in self._shared:
                parameter.copy_(_means(parameter, places, count))
            for parameter, mask in self._masks:
                parameter.mul_(mask)


def _means(tensor: Any, places: Any, count: int) -> Any:
    """``tensor`` with every element replaced by the mean of those in the same place (of ``count``)."""
    import torch

    sums = torch.zeros(count).index_add_(0, places, tensor.flatten())
    sizes = torch.zeros(count).index_add_(0, places, torch.ones_like(tensor.flatten()))
    return (sums / sizes)[places].reshape(tensor.shape)
