"""The first code of the agent's zip, as its ``__main__``: it keeps the compiled agent beside the zip.

Python compiles the sources of a zip at every start, which takes longer than all else of a start together. What an
earlier start compiled is taken instead, as Python itself does for modules in folders. The file can be spared: where it
is absent, torn, of another Python or can't be written, the sources are compiled as ever.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
import zlib
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any, Dict, Optional, Tuple

Codes = Dict[str, Tuple[bool, str, CodeType]]  # name -> whether it is a package, its path in the zip, its code
_SUM = 4


class Kept:
    """Finds and loads the modules in ``codes``, which come from the zip ``archive``."""

    def __init__(self, archive: str, codes: Codes) -> None:
        self.archive, self._codes = archive, codes

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Optional[ModuleSpec]:
        """Where a module comes from, as the import system asks; None for those of others."""
        if name not in self._codes:
            return None
        package, place, _ = self._codes[name]
        origin = os.path.join(self.archive, place)
        spec = ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: Any) -> None:
        """Run a module's code."""
        exec(self._codes[module.__name__][2], module.__dict__)  # noqa: S102 - this is what an import is


def kept(path: str) -> Optional[Codes]:
    """What is kept at ``path``, or None if it is not whole."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if zlib.crc32(data[_SUM:]) == int.from_bytes(data[:_SUM], "big"):
            return marshal.loads(data[_SUM:])  # type: ignore[no-any-return] # noqa: S302 - written by `keep` below
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return None


def compiled(archive: str) -> Codes:
    """Compile all of the agent's modules in a zip."""
    import zipfile

    codes: Codes = {}
    with zipfile.ZipFile(archive) as opened:
        for place in opened.namelist():
            if place.startswith("edgepipe/") and place.endswith(".py"):
                name = place[: -len(".py")].replace("/", ".")
                package = name.endswith(".__init__")
                name = name[: -len(".__init__")] if package else name
                code = compile(opened.read(place), os.path.join(archive, place), "exec", dont_inherit=True)
                codes[name] = (package, place, code)
    return codes


def keep(path: str, codes: Codes) -> None:
    """Keep what was compiled, in place of what other versions kept there. Never raises."""
    data = marshal.dumps(codes)
    new = f"{path}.{os.getpid()}"
    folder, ending = os.path.split(path)[0], _ending()
    with contextlib.suppress(OSError):
        try:
            with open(new, "wb") as file:
                file.write(zlib.crc32(data).to_bytes(_SUM, "big") + data)
            os.replace(new, path)
        except OSError:
            os.unlink(new)
        for name in os.listdir(folder):
            if name.endswith(ending) and name != os.path.basename(path):
                os.unlink(os.path.join(folder, name))


def _ending() -> str:
    return f".{sys.implementation.cache_tag}.code"


def start(archive: str) -> None:
    """Have the agent's modules come from what is kept. An agent that serves makes it; its children only read."""
    path = archive + _ending()
    codes = kept(path)
    if codes is None and sys.argv[1:2] == ["serve"]:
        codes = compiled(archive)
        keep(path, codes)
    if codes:
        sys.meta_path.insert(0, Kept(archive, codes))


if __name__ == "__main__":
    start(os.path.abspath(sys.argv[0]))
    from edgepipe.agent.__main__ import main

    sys.exit(main(sys.argv[1:]))
