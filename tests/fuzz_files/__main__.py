"""Feed mutated files to every reader, in a sealed child that is started anew when it dies.

`make fuzz` prints the counts. A reader may accept a file, refuse it with a typed error, raise something else, or kill
its child: `isolate.read` makes a typed error of the last two. What it must never do is open the secret beside its
folder. Opens by Python are seen; those of native code are not.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

READERS = {
    "onnx": "edgepipe.formats.onnx.load:inspect",
    "tflite": "edgepipe.formats.tflite.load:inspect",
    "xml": "edgepipe.formats.openvino.load:inspect",
    "pt2": "edgepipe.formats.torch.program:check",
    "keras": "edgepipe.formats.keras.read:function",
}


def mutated(content: bytes, seed: int) -> bytes:
    """The file with bytes flipped, cut, doubled or replaced by a way out of the folder, always the same for a seed."""
    chance, found = random.Random(seed), bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at, kind = chance.randrange(max(len(found), 1)), chance.randrange(5)
        if kind == 0:
            found = found[:at]
        elif kind == 1:
            found[at : at + 8] = b"\xff" * 8
        elif kind == 2:
            found[at:at] = found[at : at + chance.randrange(64)]
        elif kind == 3:
            found[at : at + 9] = b"../secret"
        elif found:
            found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
    return bytes(found)


def work(kind: str, source: str, first: int, last: int, log: str) -> None:
    """Read the mutations in turn and write a line for each (runs in the child)."""
    from edgepipe import isolate
    from edgepipe.errors import EdgepipeError

    module, _, name = READERS[kind].partition(":")
    read = getattr(importlib.import_module(module), name)
    content, folder = Path(source).read_bytes(), Path(tempfile.mkdtemp(prefix="fuzz-")) / "model"
    folder.mkdir()
    (folder.parent / "secret").write_bytes(bytes(64))
    told: list[str] = []

    def watch(event: str, args: tuple) -> None:
        if event == "open" and str(args[0]).endswith("/secret"):
            told.append("secret")

    path = folder / Path(source).name
    if kind == "xml":
        path.with_suffix(".bin").write_bytes(Path(source).with_suffix(".bin").read_bytes())
    with Path(log).open("a") as lines:
        sys.addaudithook(watch)
        isolate.seal()
        for seed in range(first, last):
            path.write_bytes(mutated(content, seed))
            try:
                read(str(path))
                word = "accepted"
            except EdgepipeError:
                word = "refused"
            except Exception:
                word = "raised"
            lines.write(f"{'escaped' if told else word}\n")
            lines.flush()
            told.clear()


def fuzz(kind: str, source: Path, count: int) -> Counter[str]:
    """Read ``count`` mutations of a file; how many ended in which way."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        log, env = Path(base) / "log", {**os.environ, "TMPDIR": base, "TF_CPP_MIN_LOG_LEVEL": "3"}
        log.touch()
        died = 0
        while (done := len(log.read_text().splitlines()) + died) < count:
            job = json.dumps([kind, str(source), done, count, str(log)])
            ended = subprocess.run(
                [sys.executable, "-m", "tests.fuzz_files", job], env=env, capture_output=True, check=False
            )
            died += ended.returncode != 0
        return Counter(log.read_text().split()) + Counter({"died": died} if died else {})


def main() -> int:
    from tests.unit import formats_kit, keras_kit
    from tests.unit.test_program import write_programs

    count = int(os.environ.get("COUNT", "100000")) // len(READERS)
    sources = {name: Path(formats_kit.made(name).artifact.path) for name in ("onnx", "tflite")}
    sources["xml"] = Path(formats_kit.made("openvino").artifact.path)
    sources["pt2"] = write_programs(formats_kit.home() / "programs") / "one.pt2"
    sources["keras"] = keras_kit.files() / "net.keras"
    escaped = 0
    for kind, source in sources.items():
        found = fuzz(kind, source, count)
        escaped += found["escaped"]
        print(
            f"{kind:<8}{count:>8} files  " + "  ".join(f"{word} {n}" for word, n in sorted(found.items())), flush=True
        )
    print(f"reads outside the folder: {escaped}")
    return 1 if escaped else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(*json.loads(sys.argv[1]))
        os._exit(0)
    sys.exit(main())
