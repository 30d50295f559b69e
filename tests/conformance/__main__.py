"""`make conformance`: convert public files, plant faults, print the tables and write docs/conformance.md.

``--sample N`` takes every Nth operator model and fault, for a quick look; the page is then not written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgepipe import data, export, layerwise, model, samples
from tests.conformance import corpus, faults, page
from tests.conformance.run import Tally, convert_all

FORMATS = ("openvino", "tflite")
PAGE = Path("docs/conformance.md")
NETWORKS = ("fashion-resnet8", "fashion-mbv2")
CASES = 100


def main() -> int:
    """Run everything; the exit code is 1 if a file came out wrong, a failure is unexplained, or a fault was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=1, help="every Nth operator model and fault")
    sample = max(1, parser.parse_args().sample)
    tallies = [
        _said(convert_all(kind, files, name))
        for kind, files in (
            ("networks of the onnx wheel", corpus.networks()),
            (f"operators of {corpus.PACKAGE} {corpus.VERSION}", corpus.operators()[::sample]),
        )
        for name in FORMATS
        if files
    ]
    cases = planted(range(0, CASES, sample))
    text = page.text(tallies, cases)
    print(text)
    if sample == 1:
        PAGE.write_text(text, encoding="utf-8")
    bad = sum(tally.counts["wrong"] + tally.counts["unexplained"] for tally in tallies)
    return int(bad > 0 or not all(case.found for case in cases))


def _said(tally: Tally) -> Tally:
    print(f"{tally.kind} to {tally.format}: {dict(tally.counts)}", file=sys.stderr, flush=True)
    return tally


def planted(seeds: range) -> list[faults.Case]:
    """Plant and look for a fault for each seed, in turns in the shipped networks."""
    found = []
    for place, name in enumerate(NETWORKS):
        network = model.load(name)
        sound = {form: export.make(network, "none", form).artifact for form in faults.FORMATS}
        fed = samples.choose(sound["onnx"], data.evaluation(network, "shipped"), layerwise.SAMPLES)
        one = layerwise.observe(sound["onnx"], fed)
        found += [faults.try_case(seed, sound, one, fed) for seed in seeds if seed % len(NETWORKS) == place]
    return sorted(found, key=lambda case: case.seed)


if __name__ == "__main__":
    sys.exit(main())
