"""A virtual environment for each peer, made once below a cache folder outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_DISK = 6 << 30  # free bytes that an environment may need
_TORCH = "torch==2.13.0"  # by pip the CPU build


class MissingError(Exception):
    """An environment can't be had here; the text says why."""


@dataclass(frozen=True)
class Environment:
    """What is installed together; ``python`` is the interpreter it needs, None for the one that runs this."""

    name: str
    requirements: tuple[str, ...]
    python: str | None = None

    @property
    def folder(self) -> Path:
        """Where it is: named by what it holds."""
        text = "\n".join((self.python or f"python{sys.version_info[0]}.{sys.version_info[1]}", *self.requirements))
        return cache() / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def make(self) -> Path:
        """The environment's interpreter, after it was installed if need be.

        Raises:
            MissingError: no such interpreter, too little disk, or the packages can't be installed.
        """
        python = self.folder / "bin" / "python"
        if (self.folder / "complete").is_file():
            return python
        base = _interpreter(self.python) if self.python else sys.executable
        if shutil.disk_usage(cache()).free < _DISK:
            raise MissingError(f"less than {_DISK >> 30} GiB free below {cache()}")
        shutil.rmtree(self.folder, ignore_errors=True)
        print(
            f"installing {self.name} (once, some minutes): {' '.join(self.requirements)}", file=sys.stderr, flush=True
        )
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([base, "-m", "venv", str(self.folder)], [*pip, *self.requirements]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean())
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                raise MissingError(f"{self.name} can't be installed: {lines[-1][:200] if lines else 'pip failed'}")
        (self.folder / "complete").touch()
        return python


OLIVE = Environment("olive", ("olive-ai==0.13.0", "requests", "onnxruntime==1.31.1", "onnx==1.23.2", _TORCH))
NNCF = Environment("nncf", ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2", "onnxruntime==1.31.1"))
INC = Environment("neural-compressor", ("neural-compressor-pt==3.10", "packaging", _TORCH))
# The last line with an ONNX backend, and the newest packages it works with.
INC2 = Environment(
    "neural-compressor2",
    ("neural-compressor==2.6", "onnx==1.16.2", "onnxruntime==1.19.2", "numpy<2", "setuptools<80", "six", "tqdm"),
)
ONNX2TF = Environment("onnx2tf", ("onnx2tf>=2.6,<3", "onnx", "onnxruntime"), "python3.12")

LLAMA_CPP = Environment("llama-cpp", ("xllamacpp==2026.10.11549", "numpy==2.4.6"))
OPENVINO_GENAI = Environment("openvino-genai", ("openvino-genai==2026.4.1.0", "numpy==2.4.6"))
GENAI = Environment("onnxruntime-genai", ("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "numpy==2.4.6"))


def cache() -> Path:
    """The folder of all environments and downloads, made if need be."""
    base = os.environ.get("EDGEPIPE_CACHE") or str(Path.home() / ".cache" / "edgepipe")
    path = Path(base) / "peers"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _clean() -> dict[str, str]:
    """This process's environment without what would let packages of one environment into another."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    }


def _interpreter(name: str) -> str:
    """The path of another Python.

    Raises:
        MissingError: there is none that starts.
    """
    candidates = [shutil.which(name), *map(str, sorted(Path.home().glob(f".pyenv/versions/{name[6:]}*/bin/{name}")))]
    for found in candidates:
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    raise MissingError(f"needs {name}, which is not on this machine")
