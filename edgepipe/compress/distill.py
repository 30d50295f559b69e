"""Distillation: the changed network learns to answer as the float model it came from (Hinton et al. 2015).

It goes after a step that lost something. Zeros and shared values that earlier steps made stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.training import Changed, fit_to_teacher, outputs_of, relative_error, taught

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "distill"
HELP = "repairs the step before it: trains the network to answer as the float model does"
DEFAULTS: dict[str, Any] = {"epochs": 3, "temperature": 4.0, "alpha": 0.9, "features": "no"}
CHOICES = {"features": ("no", "yes")}
LIMITS = {"epochs": (0, 1000), "temperature": (0.1, 100.0), "alpha": (0.0, 1.0)}
LIBRARIES: tuple[str, ...] = ()
REPAIRS = True
UNLABELLED = True

_RATE = 1e-3
_HINTS = 4  # layers whose outputs are held against the teacher's, spread over the network
_TENSOR = 3  # dimensions an output must have to be a feature map or a sequence


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """The training set, or the calibration data where there is none."""
    return "training"


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Train ``network`` on ``alpha`` parts of likeness to the teacher and 1 - alpha of the task's loss.

    Raises:
        UsageError: features are asked for and no layer's output has the shape of the teacher's, or there are no data.
        IntegrityError: the training diverged.
    """
    epochs = params["epochs"]
    if epochs == 0:
        return Changed(network, "not trained: no epochs were asked for")
    objective = taught(context, params["alpha"], params["temperature"])
    if params["features"] == "no":
        return Changed(network, fit_to_teacher(network, context, objective, epochs=epochs, rate=_RATE))
    names = _agreeing(network, context)
    with _Watch(network, names) as mine, _Watch(context.teacher, names) as wanted:

        def with_features(inputs: Any, outputs: list[Any], labels: Any) -> Any:
            loss = objective(inputs, outputs, labels)  # this runs the teacher, too
            hints = sum(relative_error(mine.seen[name], wanted.seen[name]) for name in names)
            return loss + hints / len(names)

        told = fit_to_teacher(network, context, with_features, epochs=epochs, rate=_RATE)
    return Changed(network, f"{told}; outputs matched at {', '.join(names)}")


def _agreeing(network: Any, context: Context) -> list[str]:
    """A few layers whose outputs have the same shape in both networks (hints: Romero et al. 2015)."""
    import torch

    def shapes(module: Any) -> dict[str, Any]:
        leaves = [name for name, child in module.named_modules() if name and not list(child.children())]
        with _Watch(module.eval(), leaves) as watch, torch.no_grad():
            last = outputs_of(module(*context.example()))
        firsts = [tuple(output.shape) for output in last]
        found = {name: tuple(value.shape) for name, value in watch.seen.items()}
        return {name: size for name, size in found.items() if len(size) >= _TENSOR and size not in firsts}

    mine, wanted = shapes(network), shapes(context.teacher)
    same = [name for name, size in mine.items() if wanted.get(name) == size]
    if not same:
        what = "no layer inside the network has an output of the same shape as the float model's"
        raise UsageError(what, "distill:features=yes", "leave features out: the answers alone can be matched")
    count = min(_HINTS, len(same))
    return [same[(index + 1) * len(same) // count - 1] for index in range(count)]


class _Watch:
    """Keeps what the named layers of a module put out while it runs; to be used in a with statement."""

    def __init__(self, module: Any, names: list[str]) -> None:
        self.seen: dict[str, Any] = {}
        self._hooks = [module.get_submodule(name).register_forward_hook(self._keeper(name)) for name in names]

    def _keeper(self, name: str) -> Any:
        import torch

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                self.seen[name] = output

        return keep

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
