"""edgepipe.toml of the working folder -> the defaults of `deploy`, read once, at the edge."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from edgepipe.errors import UsageError

FILE = "edgepipe.toml"


@dataclass(frozen=True)
class Defaults:
    """What `deploy` takes where its flags are silent."""

    model: str = ""
    target: str = ""
    recipe: str = "none"
    to: str = "onnx"
    profile: str = "quick"
    max_drop: str = ""


def read(folder: Path | None = None) -> Defaults:
    """Read ``[deploy]`` of edgepipe.toml in ``folder`` (the working folder); no file gives the built-in defaults.

    Raises:
        UsageError: the file is no TOML, or has a key nobody knows.
    """
    from edgepipe.plugins import unknown

    path = (folder or Path.cwd()) / FILE
    if not path.is_file():
        return Defaults()
    try:
        table = tomllib.loads(path.read_text()).get("deploy", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", str(path), "mend the line it names") from None
    known = [field.name for field in fields(Defaults)]
    for key, value in table.items():
        if key not in known:
            raise unknown("key of [deploy]", key, known)
        if not isinstance(value, (str, list)):
            raise UsageError(f"{key} is no text", str(path), f'write {key} = "..."')
    return Defaults(**{key: ",".join(value) if isinstance(value, list) else value for key, value in table.items()})
