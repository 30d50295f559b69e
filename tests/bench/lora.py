"""Low-rank adapters against training every weight: a sentence encoder learns to tell spam.

All begin alike: the public encoder of spam-minilm as it was published, and a new last layer that knows nothing (the one
shipped has learnt the task already). All see half of the model's training mails once, in the same order and batches, by
the labels alone, and answer the 200 mails of its evaluation set, of which none is among them. What differs is what may
learn: everything, at the best of RATES by the validation set's loss (`python -m tests.bench.lora` prints them all), or
adapters of some rank beside each linear layer and the last layer, at the step's own rate.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from edgepipe import bench, board, data, export, honesty, model, network, plugins, targets
from edgepipe.artifact import ExportOptions
from edgepipe.compress import lora
from edgepipe.errors import EdgepipeError
from edgepipe.progress import Silent
from edgepipe.schema import RunOptions
from edgepipe.training import Context, Examples, Keep, answers, fit, taught
from tests.bench.figure import Figure, at_least, at_most, missing

RANKS, RANK, EPOCHS = (1, 2, 4, 8), 4, 1
MAILS = 300  # one run over them takes about a minute on two cores, and there are seven
RATE, RATES = 2e-4, (5e-5, 1e-4, 2e-4)
_PORTION = 50  # mails answered at a time


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A trained network, its accuracy and F1 on the evaluation set, seconds of training, and what may have changed."""

    network: Any
    accuracy: float
    f1: float
    seconds: float = 0.0
    own: int = 0
    names: tuple[str, ...] = ()


class Task:
    """The model, its data, and what is trained from the same start."""

    def __init__(self) -> None:
        importlib.import_module("peft")  # its seconds are not training
        self.source = model.load("spam-minilm")
        for parameter in self.source.module.parameters():
            parameter.requires_grad_(False)
        context = network._context(self.source, "training", Keep())
        assert context.training is not None
        self.context: Context = dataclasses.replace(context, training=_first(context.training, MAILS))
        self.plugin = plugins.task(self.source.task)
        self.total = sum(parameter.numel() for parameter in self.source.module.parameters())

    def start(self) -> Any:
        """The encoder as published, and a last layer of seeded random weights."""
        import torch

        made = copy.deepcopy(self.source.module).requires_grad_(True)
        torch.manual_seed(0)
        made.head.reset_parameters()
        return made

    def everything(self, rate: float = RATE) -> Learnt:
        """All weights learn."""
        made, started = self.start(), time.perf_counter()
        batch = lora._batch(self.context)
        fit(made, self.context, taught(self.context, 0.0), epochs=EPOCHS, rate=rate, batch=batch)
        return self.judged(made, time.perf_counter() - started, self.total)

    def adapters(self, rank: int = RANK, base: str = "float") -> Learnt:
        """Adapters learn, and stay beside their layers."""
        params = {**lora.DEFAULTS, "rank": rank, "epochs": EPOCHS, "base": base, "alpha": 0.0, "merge": "no"}
        started = time.perf_counter()
        changed = lora.compress(self.start(), params, self.context)
        seconds = time.perf_counter() - started
        state = changed.network.state_dict()
        own = sum(state[name].numel() for name in changed.learnt)
        return self.judged(changed.network, seconds, own, changed.learnt)

    def judged(self, made: Any, seconds: float = 0.0, own: int = 0, names: tuple[str, ...] = ()) -> Learnt:
        """Accuracy and F1 on the evaluation set."""
        outputs, labels = self.answers(made, "evaluation")
        further = self.plugin.further(outputs, labels)
        return Learnt(made, self.plugin.metric(outputs, labels), further["F1"], seconds, own, names)

    def answers(self, made: Any, which: str) -> tuple[list[Any], Any]:
        """All outputs for a data set, and its labels."""
        import numpy as np
        import torch

        dataset = getattr(data, which)(self.source)
        examples, found = network._examples(self.source, dataset), []
        with torch.no_grad():
            for places in np.array_split(np.arange(len(examples)), -(-len(examples) // _PORTION)):
                inputs, _ = examples.take(places)
                found.append([output.numpy() for output in answers(made.eval(), inputs)])
        return [np.concatenate(part) for part in zip(*found, strict=True)], dataset.labels


def _first(examples: Examples, count: int) -> Examples:
    assert examples.labels is not None
    more = tuple(values[:count] for values in examples.more)
    return dataclasses.replace(examples, inputs=examples.inputs[:count], labels=examples.labels[:count], more=more)


def figures(_folder: Path) -> list[Figure]:
    """The sweep of ranks, rounding before and after, and adapters beside their layers against merged ones."""
    try:
        task = Task()
    except EdgepipeError as error:
        return [missing("LoRA on spam-minilm", str(error))]
    full = task.everything()
    found = [Figure("everything learns: accuracy", "", _told(full, full), None)]
    sweep = {rank: task.adapters(rank) for rank in RANKS}
    for rank, learnt in sweep.items():
        share, detail = 100 * learnt.own / task.total, _told(learnt, full)
        found.append(at_least(f"rank {rank}: accuracy / full fine-tune's", learnt.accuracy / full.accuracy, 0.98))
        found[-1] = dataclasses.replace(found[-1], reached=f"{found[-1].reached} ({detail})")
        size = f"({learnt.own:,} of {task.total:,}; {4 * learnt.own:,} bytes)"
        found.append(at_most(f"rank {rank}: parameters that learn", share, 2, "%", size))
    return [*found, *_rounded(task, sweep[RANK]), *_merged(task, sweep[RANK])]


def _told(learnt: Learnt, full: Learnt) -> str:
    ratio = f", {learnt.seconds / full.seconds:.2f} x full's" if learnt is not full else ""
    return f"{learnt.accuracy:.1%}, F1 {learnt.f1:.3f}, {learnt.seconds:.0f} s of training{ratio}"


def _rounded(task: Task, adapted: Learnt) -> list[Figure]:
    """The weights rounded to n bits before the adapter learns, or the merged network rounded after.

    The same rounding: to the nearest, symmetric, a scale for each output; the last layer stays in float. Before: a base
    of n bits with a float adapter beside it. After: one network of n bits, without an adapter.
    """
    found = []
    for bits in (8, 4):
        before = task.adapters(RANK, f"int{bits}")
        network = merged(adapted.network)
        names, _ = lora._adaptable(network, RANK)
        lora._round(network, names, bits)
        after = task.judged(network)
        told = f"{before.accuracy:.1%} / {after.accuracy:.1%}, F1 {before.f1:.3f} / {after.f1:.3f}"
        title = f"int{bits}: quantise, then adapt / adapt, then quantise"
        found.append(Figure(title, "", f"{before.accuracy / after.accuracy:.3g} x ({told})", None))
    return found


def merged(beside: Any) -> Any:
    """A copy of a network with each adapter in the weight of its layer."""
    import torch

    from edgepipe.adapted import Adapted

    made = copy.deepcopy(beside)
    with torch.no_grad():
        for name, layer in [(name, layer) for name, layer in made.named_modules() if isinstance(layer, Adapted)]:
            layer.base.weight.copy_(layer.weight)
            owner, _, own = name.rpartition(".")
            setattr(made.get_submodule(owner), own, layer.base)
    return made


def _merged(task: Task, adapted: Learnt) -> list[Figure]:
    """Files of both in ONNX Runtime: the largest difference of answers, and times in turns."""
    import numpy as np

    one, other = (task.answers(made, "evaluation")[0] for made in (adapted.network, merged(adapted.network)))
    spread = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(one, other, strict=True))
    files = []
    for word, made, learnt in (("beside", adapted.network, adapted.names), ("merged", merged(adapted.network), ())):
        identity = f"{task.source.identity}-bench-{word}-{time.time_ns()}"
        source = dataclasses.replace(task.source, network=model.Later.of(made), learnt=learnt, identity=identity)
        files.append(export.make(source, "none", "onnx", ExportOptions(), Silent()).artifact)
    dataset = data.evaluation(task.source)
    assert dataset is not None
    content, inputs = bench.blob(dataset.feeds(files[0].inputs, files[0].preprocessing))
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        client.push([(content, inputs)])
        ratio = honesty.in_turns(client, files[1], files[0], RunOptions(threads=2), inputs, Silent())
    own, base = (ref.bytes for ref in files[0].files)
    title = f"rank {RANK} beside its layers / merged: time, 2 threads"
    time_ratio = f"{ratio.value:.3g} x [{ratio.low:.3g}, {ratio.high:.3g}]" if ratio.value else f"-: {ratio.reason}"
    return [
        at_most("merged against not merged: answers differ by", spread, 1e-3, "", "of the largest"),
        Figure(title, "", time_ratio, None),
        at_most("a further adapter's file / the base", own / base, 0.02, "x", f"({own:,} / {base:,} bytes)"),
    ]


def main() -> None:
    """Print the validation loss of each rate for training everything; the command line may name some of them."""
    import torch

    task = Task()
    for rate in [float(word) for word in sys.argv[1:]] or RATES:
        outputs, labels = task.answers(task.everything(rate).network, "validation")
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(outputs[0]), torch.from_numpy(labels))
        right = task.plugin.metric(outputs, labels)
        print(f"everything, rate {rate:g}: validation loss {float(loss):.4f}, accuracy {right:.3f}", flush=True)


if __name__ == "__main__":
    main()
