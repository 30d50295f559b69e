"""What a step that changes the network is given and hands back, and the one training loop they share.

A step gets a network (a copy it may change in place) and a `Context`; it returns `Changed`. Whatever trains calls
`fit`, which holds on to what earlier steps bought: weights they zeroed stay zero, weights they shared stay shared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.schema import TensorSpec

BATCH = 128
SEED = 0
_WARM_UP = 0.1  # share of all steps over which the learning rate rises
_DECAY = 1e-4  # of AdamW (Loshchilov and Hutter 2019), on matrices and kernels alone
_PROBED = 512  # samples by which an augmentation is tried on the teacher
_HARMLESS = 1.1  # the teacher's loss may rise by a tenth under an augmentation that keeps the labels true
_TINY = 1e-12
FINE_TUNING_RATE = 1e-3
_TEMPERATURE, _ALPHA = 4.0, 0.7  # of the teacher's outputs in fine-tuning
_FEW, _PASS = 32, 4096  # without training data: the batch, and how many samples count as one epoch


@dataclass(frozen=True)
class Examples:
    """Samples as they are stored (raw, first axis samples), their labels or None, and how a batch of them is prepared.

    ``prepare`` turns raw samples into the network's first input, [samples, ...]; ``more`` has arrays for those after
    it, in their order, which are fed as they are.
    """

    inputs: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    prepare: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    name: str = ""
    more: tuple[np.ndarray[Any, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Any) -> tuple[Any, Any]:
        """The samples at ``indices``: a tensor [n, ...] or, of several inputs, a tuple; and the labels [n] or None."""
        import torch

        inputs: Any = torch.from_numpy(self.prepare(self.inputs[indices]))
        if self.more:
            inputs = (inputs, *(torch.from_numpy(values[indices]) for values in self.more))
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

    def also(self, *, zeros: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Keep:
        """What this says and more."""
        return Keep(tuple(sorted({*self.zeros, *zeros})), tuple(sorted({*self.shared, *shared})))


@dataclass(frozen=True)
class Context:
    """What a step may use.

    ``teacher`` is the float model the recipe began with, frozen and in eval mode. ``loss(outputs, labels)`` is the
    task's, a scalar tensor; None where the task has none. ``likeness(outputs, wanted, temperature)`` is the task's loss
    against the teacher's outputs. ``augment`` are its ways to vary a batch, ``(inputs, generator) -> inputs``.
    ``update(done, total, text)`` tells a person how far it is.
    """

    teacher: Any
    inputs: list[TensorSpec]
    calibration: Examples | None = None
    training: Examples | None = None
    loss: Callable[[list[Any], Any], Any] | None = None
    likeness: Callable[[list[Any], list[Any], float], Any] | None = None
    augment: tuple[Callable[[Any, Any], Any], ...] = ()
    keep: Keep = field(default_factory=Keep)
    update: Callable[[float, float, str], None] = lambda *_: None

    def example(self, batch: int = 1) -> tuple[Any, ...]:
        """Zeros of the inputs' shapes and types."""
        import torch

        return tuple(torch.zeros([batch, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in self.inputs)


@dataclass(frozen=True)
class Changed:
    """A step's result: the network, one line on what was done, the share it was asked to zero, what is to be kept.

    ``learnt`` names the parameters that stay beside the rest, which is to be a file of its own.
    """

    network: Any
    note: str = ""
    sparsity: float | None = None
    keep: Keep = field(default_factory=Keep)
    learnt: tuple[str, ...] = ()


def outputs_of(result: Any) -> list[Any]:
    """A module's result as a list of tensors."""
    return list(result) if isinstance(result, (list, tuple)) else [result]


def answers(network: Any, inputs: Any) -> list[Any]:
    """The outputs of a network for a batch as `Examples.take` gives it: a tensor, or a tuple of one for each input."""
    return outputs_of(network(*inputs) if isinstance(inputs, tuple) else network(inputs))


def fit(
    network: Any,
    context: Context,
    objective: Callable[[Any, list[Any], Any], Any],
    *,
    epochs: int,
    rate: float,
    examples: Examples | None = None,
    keep: Keep | None = None,
    batch: int = BATCH,
) -> str:
    """Train ``network`` in place with AdamW and a cosine schedule, and leave it in eval mode.

    ``objective(inputs, outputs, labels)`` is the loss of one batch. ``examples`` are the training set unless given.
    Samples are varied by those of the task's augmentations that leave the labels true (`_harmless`).

    Returns:
        One line: epochs, samples, augmentations, the first and the last epoch's mean loss.

    Raises:
        UsageError: there is no training set.
        IntegrityError: the loss is not finite.
    """
    import torch

    if (samples := examples or context.training) is None:
        raise UsageError("there is nothing to train on", "training", "name data in model.toml, [data] training")
    if epochs == 0:
        return "not trained"
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    augment = _harmless(context, samples)
    loop = _Loop(network, keep or context.keep, rate, epochs * max(1, len(samples) // min(batch, len(samples))))
    network.to(memory_format=torch.channels_last)  # convolutions train up to twice as fast in it
    network.train()
    for epoch in range(epochs):
        for inputs, labels in samples.batches(batch, generator):
            varied = _vary(inputs, augment, generator)
            loss = loop.step(objective(varied, answers(network, varied), labels))
            if not math.isfinite(loss):
                raise IntegrityError(
                    "training diverged: the loss is not finite", f"epoch {epoch + 1}", "lower the rate"
                )
            context.update(len(loop.losses), loop.total, f"epoch {epoch + 1} of {epochs}, loss {loss:.3f}")
    network.to(memory_format=torch.contiguous_format)
    network.eval()
    names = ", ".join([samples.name, *(vary.__name__ for vary in augment)])
    return f"{epochs} epochs over {len(samples)} samples ({names}), {_ends(loop.losses, loop.total // epochs)}"


class _Loop:
    """The optimiser and its schedule: one step after another, each of which keeps what is to be kept."""

    def __init__(self, network: Any, keep: Keep, rate: float, total: int) -> None:
        import torch

        self.total, self.losses = total, list[float]()
        self._holder = _Holder(network, keep)
        self._optimiser = torch.optim.AdamW(_groups(network), lr=rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, rate, total_steps=total, pct_start=_WARM_UP, cycle_momentum=False
        )

    def step(self, loss: Any) -> float:
        """Go down the gradient of ``loss``, if it is finite, and return it as a number."""
        self.losses.append(float(loss.detach()))
        if math.isfinite(self.losses[-1]):
            self._optimiser.zero_grad()
            loss.backward()
            self._holder.gradients()
            self._optimiser.step()
            self._holder.weights()
            self._schedule.step()
        return self.losses[-1]


def _harmless(context: Context, samples: Examples) -> tuple[Callable[[Any, Any], Any], ...]:
    """The augmentations under which the teacher's loss stays: a mirrored coat is a coat, a mirrored 2 is no 2.

    Without labels all of them: what is wanted for the varied sample is then what the teacher says to it.
    """
    import numpy as np
    import torch

    loss = context.loss
    if not context.augment or samples.labels is None or loss is None:
        return context.augment
    inputs, labels = samples.take(np.linspace(0, len(samples) - 1, min(_PROBED, len(samples))).astype(int))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        limit = _HARMLESS * float(loss(answers(context.teacher, inputs), labels))
        return tuple(
            vary
            for vary in context.augment
            if float(loss(answers(context.teacher, vary(inputs, generator)), labels)) <= limit
        )


def _vary(inputs: Any, augment: tuple[Callable[[Any, Any], Any], ...], generator: Any) -> Any:
    import torch

    for vary in augment:
        inputs = vary(inputs, generator)
    if isinstance(inputs, tuple):
        return inputs
    image = inputs.dim() == 4  # noqa: PLR2004  samples, channels, rows, columns
    return inputs.contiguous(memory_format=torch.channels_last) if image else inputs


def imitation(context: Context, outputs: list[Any], wanted: list[Any], temperature: float = 1.0) -> Any:
    """How far ``outputs`` are from the teacher's, ``wanted``: a scalar tensor, by the task's own measure.

    Where the task has none: the mean squared error in units of the wanted output's variance, averaged over outputs.
    """
    if context.likeness:
        return context.likeness(outputs, wanted, temperature)
    return sum(relative_error(one, other) for one, other in zip(outputs, wanted, strict=True)) / len(outputs)


def relative_error(value: Any, wanted: Any) -> Any:
    """The mean squared error of ``value`` in units of the variance of ``wanted``: 1 is as good as its mean."""
    import torch

    return torch.nn.functional.mse_loss(value, wanted) / wanted.var(correction=0).clamp_min(_TINY)


def taught(context: Context, alpha: float, temperature: float = 1.0) -> Callable[[Any, list[Any], Any], Any]:
    """An objective for `fit_to_teacher`: ``alpha`` times `imitation`, and the rest the task's loss where labels are.

    With an ``alpha`` of 0 the teacher is not asked: that is a third of the time of a step.
    """
    import torch

    def objective(inputs: Any, outputs: list[Any], labels: Any) -> Any:
        if not alpha and labels is not None and context.loss is not None:
            return context.loss(outputs, labels)
        with torch.no_grad():
            wanted = answers(context.teacher, inputs)
        soft = imitation(context, outputs, wanted, temperature)
        if labels is None or context.loss is None:
            return soft
        return alpha * soft + (1 - alpha) * context.loss(outputs, labels)

    return objective


def teaching_batch(context: Context) -> int:
    """The size of all batches that `fit_to_teacher` trains on."""
    samples = context.training or context.calibration
    return min(BATCH if context.training else _FEW, len(samples) if samples else 1)


def fit_to_teacher(
    network: Any, context: Context, objective: Callable[[Any, list[Any], Any], Any], *, epochs: int, rate: float
) -> str:
    """`fit` for an objective that also works without labels: on the calibration data where there is no training set.

    Raises:
        UsageError: there are no data at all.
        IntegrityError: the loss is not finite.
    """
    if context.training is not None or context.calibration is None:
        return fit(network, context, objective, epochs=epochs, rate=rate)
    few = replace(context.calibration, labels=None)
    passes = max(1, _PASS // len(few))
    told = fit(network, context, objective, epochs=epochs * passes, rate=rate, examples=few, batch=_FEW)
    return f"{told}; no training data: the calibration samples without labels, {passes} times over for each epoch"


def _ends(losses: list[float], size: int) -> str:
    """The mean loss of the first and of the last epoch."""
    return f"loss {statistics.fmean(losses[:size]):.3f} -> {statistics.fmean(losses[-size:]):.3f}"


def fine_tune(network: Any, context: Context, epochs: int, keep: Keep, rate: float = FINE_TUNING_RATE) -> str:
    """Train after a lossy step, on the task's own loss with the float model as a teacher beside it.

    Returns one line on it, which says why where there was no training.
    """
    if epochs == 0:
        return "not fine-tuned"
    if context.training is None:
        return "not fine-tuned: the model has no training data"
    return fit(network, context, taught(context, _ALPHA, _TEMPERATURE), epochs=epochs, rate=rate, keep=keep)


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
