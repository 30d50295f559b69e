"""Compressed networks: changed by a step in a child process, kept as weights and edits, and put together again.

A step may replace layers (pruned channels, factorised weights). What it did is kept as data, never as pickled code: the
constructor arguments of each layer that differs from the model's own network, and the weights as safetensors. So the
network of any stage is the model's own code, with edits applied.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import data, isolate, model, plugins, recipe
from edgepipe.edits import apply_edits, find_edits
from edgepipe.errors import BoardError, IntegrityError, UsageError
from edgepipe.model import Later, Model
from edgepipe.training import Changed, Context, Examples, Keep

if TYPE_CHECKING:
    from edgepipe.data import Dataset

WEIGHTS, RECORD = "weights.safetensors", "network.json"
_DEADLINE = 7 * 86400.0  # training takes as many epochs as were asked for, and says how far it is


@dataclass(frozen=True)
class Network:
    """What the record of a stage says besides the edits: counts, what the step said, what must be kept, what learnt."""

    parameters: int
    macs: int | None
    note: str = ""
    sparsity: float | None = None
    keep: Keep = field(default_factory=Keep)
    learnt: tuple[str, ...] = ()


def compress(
    source: Model,
    before: Path | None,
    step: str,
    params: dict[str, Any],
    folder: Path,
    tick: Callable[..., None] | None = None,
) -> None:
    """Apply one step to the network of stage ``before`` (the model's own if None); write the stage into ``folder``.

    Raises:
        UsageError: the step can't be done on this network; the error says why.
        IntegrityError: it left weights that are not finite, or a network that does not run.
        BoardError: it crashed or ran out of memory.
    """
    arguments = {
        "ref": source.ref,
        "input_shape": source.input_shape,
        "before": str(before) if before else None,
        "step": step,
        "params": params,
        "folder": str(folder),
    }
    isolate.call(f"{__name__}:work", arguments, deadline=_DEADLINE, tick=tick)


def load(source: Model, folder: Path, identity: str) -> tuple[Model, Network]:
    """The model whose network a stage holds, and the stage's record. It is put together when somebody asks for it.

    IntegrityError is raised then where the stage does not belong to this model.
    """
    record = _record(folder)[0]
    facts = replace(source.facts, parameters=record.parameters, macs=record.macs)
    restored = Later(lambda: _restore(source, folder)[0])
    return replace(source, network=restored, identity=identity, facts=facts, learnt=record.learnt), record


def work(
    ref: str,
    input_shape: model.Shapes | None,
    before: str | None,
    step: str,
    params: dict[str, Any],
    folder: str,
) -> None:
    """Do one step (runs in the child): load the model, restore the stage before, change it, write it."""
    source = model.load(ref, input_shape)
    network, record = copy.deepcopy(source.module), None
    network.requires_grad_(requires_grad=True)  # what its author froze may change, too: the teacher stays
    if before:
        network, record = _restore(source, Path(before))
    plugin = recipe.network_steps()[step]
    context = _context(source, plugin.needs(params), record.keep if record else Keep())
    try:
        changed: Changed = plugin.compress(network, params, context)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            fix = "free memory, or use fewer or smaller layers"
            raise BoardError(f"{step} ran out of memory", source.name, fix) from None
        raise
    _save(source, changed, record, Path(folder))


def _context(source: Model, needs: str, keep: Keep) -> Context:
    for parameter in source.module.parameters():
        parameter.requires_grad_(False)
    task = plugins.task(source.task)
    training = data.training(source) if needs == "training" else None
    varied = hasattr(task, "augmentations") and len(source.inputs) == 1
    calibrated = needs and source.data and source.data.calibration
    return Context(
        teacher=source.module,
        inputs=source.inputs,
        calibration=_examples(source, data.calibration(source)) if calibrated else None,
        training=_examples(source, training) if training else None,
        loss=getattr(task, "loss", None),
        likeness=getattr(task, "likeness", None),
        augment=tuple(task.augmentations(source.inputs[0].layout)) if varied else (),
        keep=keep,
        update=isolate.report,
    )


def _examples(source: Model, dataset: Dataset) -> Examples:
    from edgepipe.agent.preprocess import prepare

    how = partial(prepare, pre=source.preprocessing, raw_layout=dataset.layout)
    more = tuple(dataset.more[spec.name] for spec in source.inputs[1:])
    return Examples(dataset.inputs, dataset.labels, how, dataset.name, more)


def _save(source: Model, changed: Changed, before: Network | None, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from edgepipe.formats.torch.load import count

    network = changed.network.eval()
    state = {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise IntegrityError(f"{broken[0]} is not finite after the step", source.name, "use a gentler setting")
    specs, macs, _ = count(network, source.inputs, source.name)
    if [spec.shape for spec in specs] != [spec.shape for spec in source.outputs]:
        raise IntegrityError("the outputs have another shape after the step", source.name, "report this: it is a bug")
    keep = _merge(before.keep if before else Keep(), changed.keep, set(state))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    sparsity = changed.sparsity if changed.sparsity is not None else before.sparsity if before else None
    record = Network(parameters, macs, changed.note, sparsity, keep, changed.learnt)
    save_file(state, folder / WEIGHTS)
    text = json.dumps({"edits": find_edits(source.module, network), **asdict(record)})
    (folder / RECORD).write_text(text, encoding="utf-8")


def _merge(old: Keep, new: Keep, names: set[str]) -> Keep:
    """What both steps want kept, of the parameters there still are."""
    zeros = tuple(sorted({*old.zeros, *new.zeros} & names))
    return Keep(zeros, tuple(sorted({*old.shared, *new.shared} & names)))


def _restore(source: Model, folder: Path) -> tuple[Any, Network]:
    from safetensors.torch import load_file

    record, edits = _record(folder)
    network = copy.deepcopy(source.module)
    try:
        apply_edits(network, edits)
        network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (UsageError, RuntimeError) as error:
        what = f"the compressed network does not fit the model: {str(error)[:200]}"
        raise IntegrityError(what, str(folder), "remove that folder; it is made again") from None
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval(), record


def _record(folder: Path) -> tuple[Network, dict[str, Any]]:
    """A stage's record, and its edits."""
    told = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    edits = told.pop("edits")
    keep = Keep(tuple(told["keep"]["zeros"]), tuple(told["keep"]["shared"]))
    return Network(**{**told, "keep": keep, "learnt": tuple(told["learnt"])}), edits
