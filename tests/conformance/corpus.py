"""Public files to convert: what the onnx wheel carries, and the operator models of Debian's libonnx-testdata."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from edgepipe import paths

PACKAGE, VERSION = "libonnx-testdata", "1.12.0-2"
SHA256 = "7dc0912e02f79ece102331411a751b091bc0e191c9fb1287f8cdfbe5530f6027"


def networks() -> list[Path]:
    """Whole networks of the installed onnx wheel: old files (opset 9, IR 3) whose weights are constants."""
    import onnx

    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def operators() -> list[Path]:
    """The operator models, fetched once into the user's cache; none where there is no Debian to ask.

    Raises:
        RuntimeError: the package is not the one that was counted.
    """
    folder = paths.cache_home() / "conformance" / f"{PACKAGE}-{VERSION}"
    if not folder.is_dir():
        package = _download(folder.parent)
        if package is None:
            return []
        if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError(f"{package.name} is not the package whose cases were counted")
        part = folder.with_suffix(".part")
        subprocess.run(["dpkg", "-x", str(package), str(part)], check=True)
        part.rename(folder)
    return sorted(folder.rglob("model.onnx"))


def _download(folder: Path) -> Path | None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True, capture_output=True, timeout=300
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(folder.glob(f"{PACKAGE}_*.deb"), None)


def name_of(path: Path) -> str:
    """What a case is called: its folder's name, or the file's."""
    return path.parent.name if path.name == "model.onnx" else path.stem
