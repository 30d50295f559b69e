"""Fine-tuning after a lossy step: on the task's own loss, with the float model as a teacher beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.training import Keep, fit, taught

if TYPE_CHECKING:
    from edgepipe.training import Context

RATE = 1e-3
_TEMPERATURE, _ALPHA = 4.0, 0.7


def recover(network: Any, context: Context, epochs: int, keep: Keep, rate: float = RATE) -> str:
    """Train ``network`` in place and return one line on it; the line says why where there was no training."""
    if epochs == 0:
        return "not fine-tuned"
    if context.training is None:
        return "not fine-tuned: the model has no training data"
    return fit(network, context, taught(context, _ALPHA, _TEMPERATURE), epochs=epochs, rate=rate, keep=keep)


def also(keep: Keep, *, zeros: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Keep:
    """What ``keep`` says and more."""
    return Keep(tuple(sorted({*keep.zeros, *zeros})), tuple(sorted({*keep.shared, *shared})))
