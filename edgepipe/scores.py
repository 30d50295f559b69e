"""A task's metric: which way is better, what was lost, how it is said. A share of 1 unless the task says otherwise."""

from __future__ import annotations

from typing import Any


def lower_is_better(task: Any) -> bool:
    """Whether less of the task's metric is better; ``task`` is a plug-in, or the `Accuracy` it was measured as."""
    return bool(getattr(task, "LOWER_IS_BETTER", getattr(task, "lower_is_better", False)))


def unit(task: Any) -> str:
    """What the task's metric is in; empty for a share of 1."""
    return str(getattr(task, "UNIT", getattr(task, "unit", "")))


def lost(before: float, after: float, task: Any) -> float:
    """What the metric lost, as a share of 1: of the samples for one that is a share, else of what it was before.

    Negative where it got better. So 1 % is a point of an accuracy, and a hundredth of a bound in nats.
    """
    worse = after - before if lower_is_better(task) else before - after
    return worse / max(abs(before), 1e-12) if unit(task) else worse


def limit(before: float, share: float, task: Any) -> float:
    """The value that has lost ``share`` of 1 against ``before``, as `lost` counts it."""
    worse = share * max(abs(before), 1e-12) if unit(task) else share
    return before + worse if lower_is_better(task) else before - worse


def verb(task: Any) -> str:
    """The word for a metric that got worse."""
    return "rose" if lower_is_better(task) else "fell"


def divergence(logits: Any, wanted: Any, temperature: float) -> Any:
    """The Kullback-Leibler divergence of softened class scores times the temperature squared (Hinton et al. 2015).

    Both are torch tensors [samples, classes], ``wanted`` the teacher's; the result is a scalar tensor.
    """
    from torch.nn import functional

    soft, target = (functional.log_softmax(scores / temperature, dim=1) for scores in (logits, wanted))
    return functional.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def said(value: float, unit: str) -> str:
    """A metric as people read it: per cent where it is a share."""
    return f"{value:.5g} {unit}" if unit else f"{value:.2%}"
