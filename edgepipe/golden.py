"""Golden samples of a release: what its file answered on this host, for the board to hold itself against.

They are part of the manifest, and so of what is signed. The board runs them before its link moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe import bench, recipe, runner, verify
from edgepipe.errors import UsageError
from edgepipe.schema import SelfTest

if TYPE_CHECKING:
    from edgepipe.data import Dataset
    from edgepipe.link._push import Source
    from edgepipe.schema import Artifact

SAMPLES = 8
# Shares of the largest golden output that one output may be off. A board may compute a float file in halves (OpenVINO
# on ARM) or in bfloat16, whose roundings of 2**-9 add up over the layers; an integer kernel of another CPU rounds
# otherwise in every layer. The parity ladder judges accuracy; this only asks whether the model is still the model.
FLOAT_SHARE = 0.1
LOSSY_SHARE = 0.25


@dataclass(frozen=True)
class Golden:
    """The self-test of a manifest, and its two blobs to push."""

    test: SelfTest
    blobs: list[Source]


def make(artifact: Artifact, dataset: Dataset | None) -> Golden | None:
    """Run the first samples of ``dataset`` (made-up ones without it) through the file on this host.

    None where there is nothing to feed it: no data, and an input with a free dimension besides the batch.
    """
    import numpy as np

    from edgepipe.agent import feeds

    if dataset is not None:
        few = dataset.first(SAMPLES)
        fed = few.feeds(artifact.inputs, artifact.preprocessing) if few.more else {}
        inputs = bench.blob(
            {str(n): fed[x.name] for n, x in enumerate(artifact.inputs)} if fed else {"inputs": few.inputs}
        )
        outputs = verify.outputs_of(artifact, few)
    else:
        try:
            made_up = feeds.one_batch(artifact, None, 1)
        except UsageError:
            return None
        named = {spec.name: array for spec, array in zip(artifact.inputs, made_up, strict=True)}
        inputs = bench.blob({str(number): array for number, array in enumerate(made_up)})
        outputs = runner.run_file(artifact, named, optimize=False).outputs
    largest = max((float(np.max(np.abs(array))) for array in outputs if array.size), default=0.0)
    share = LOSSY_SHARE if _lossy(artifact) else FLOAT_SHARE
    wanted = bench.blob({str(number): array for number, array in enumerate(outputs)})
    return Golden(SelfTest(inputs[1], wanted[1], atol=max(share * largest, 1e-6)), [inputs, wanted])


def _lossy(artifact: Artifact) -> bool:
    steps = [step.split(":")[0] for step in artifact.recipe.split("+")]
    return artifact.recipe == verify.UNKNOWN or any(step in recipe.file_steps() and step != "fp16" for step in steps)
