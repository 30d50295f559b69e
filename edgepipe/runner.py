"""Run an exported file on this machine, in a child process with the same code the board uses."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.agent import jobs, runtimes, worker
from edgepipe.codec import from_dict
from edgepipe.schema import Artifact, Executed, RunOptions


@dataclass(frozen=True)
class RunResult:
    """``outputs`` in the order of the artifact's, samples along axis 0; ``seconds`` sums over all runs."""

    outputs: list[Any]
    precision_executed: str
    provider: str
    runtime_version: str
    seconds: float
    executed: Executed


def run_file(
    artifact: Artifact,
    inputs: dict[str, Any],
    *,
    runtime: str | None = None,
    threads: int = 2,
    optimize: bool = True,
    deadline: float = 600.0,
) -> RunResult:
    """Run all samples through an artifact's file.

    ``inputs`` is ``{"inputs": raw}`` (a batch of raw data; the artifact's preprocessing is applied, for the first
    input), or arrays by input name, which are fed as they are.
    ``optimize=False`` switches the runtime's graph optimiser off.
    ``deadline`` is in seconds.

    Raises:
        BoardError: the runtime crashed, or can't load or run the file.
        DeadlineError: it took too long.
        UsageError: no runtime runs this format, or an input is missing.
    """
    import numpy as np

    name = runtime or runtimes.runtime_for(artifact.format)
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as scratch:
        given, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        raw = set(inputs) == {"inputs"}
        # By position, since an input may be called "file", as savez's own argument is.
        named = {str(i): inputs[spec.name] for i, spec in enumerate(artifact.inputs) if spec.name in inputs}
        np.savez(given, **(inputs if raw else named))
        options = RunOptions(threads=threads, optimize=optimize)
        job = jobs.make("infer", artifact, name, str(Path(artifact.path).resolve()), options, scratch)
        job.update(inputs=str(given), outputs=str(outputs))
        done = worker.run(job, deadline=deadline)
        with np.load(outputs, allow_pickle=False) as file:
            arrays = [file[str(index)] for index in range(len(file.files))]
    executed = from_dict(Executed, done["counted"])
    return RunResult(arrays, done["precision"], done["provider"], done["runtime_version"], done["seconds"], executed)
