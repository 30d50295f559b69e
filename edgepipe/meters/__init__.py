"""Power meters read on the host, a file each: plugs and instruments that see a board from outside.

A meter file has ``OPTIONS`` (its own keys of ``[meter.options]``, each with what it means) and
``find(settings) -> Meter``, which reads it once; the `Meter` has ``read() -> watts``, as those on the board have.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe.errors import UsageError

_WHERE = "[meter] of the target"
_MOST_SECRET = 4096
SECRETS = {
    "password_env": "name of the environment variable that holds the password",
    "password_file": "file that holds the password and that only you can read",
}


@dataclass(frozen=True)
class Settings:
    """Where a meter is, and its options."""

    address: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def text(self, key: str, default: str = "") -> str:
        """Return an option that is a text.

        Raises:
            UsageError: it is none.
        """
        value = self.options.get(key, default)
        if not isinstance(value, str):
            raise UsageError(f"{key} is no text: {value!r}", _WHERE, f'write {key} = "..."')
        return value

    def number(self, key: str, default: float) -> float:
        """Return an option that is a number.

        Raises:
            UsageError: it is none.
        """
        value = self.options.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{key} is no number: {value!r}", _WHERE, f"write {key} = {default:g}")
        return float(value)

    def place(self, example: str) -> str:
        """Return the address, which may hold no password.

        Raises:
            UsageError: there is none, or it holds one.
        """
        if not self.address:
            raise UsageError("the meter has no address", _WHERE, f'write address = "{example}"')
        if "@" in self.address:
            raise UsageError(
                "a user or password in the meter's address", _WHERE, "use user and password_env in options"
            )
        return self.address

    def password(self) -> str:
        """Return the password from the environment or a file, or nothing where neither is named.

        Raises:
            UsageError: it is not there, or others can read the file.
        """
        name, path = self.text("password_env"), self.text("password_file")
        if name:
            if not os.environ.get(name):
                raise UsageError(f"the environment has no {name}", _WHERE, f"set {name} to the meter's password")
            return os.environ[name]
        if not path:
            return ""
        file = Path(path).expanduser()
        try:
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError("others can read the meter's password", str(file), f"chmod 600 {file}")
            with file.open(encoding="utf-8") as stream:
                return stream.read(_MOST_SECRET).rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the meter's password can't be read: {error}", str(file), "correct password_file"
            ) from None


def pick(document: Any, path: str) -> float:
    """Return the number at a path such as ``ENERGY.Power`` or ``meters.0.power`` in a JSON document.

    Raises:
        ValueError: there is none.
    """
    value = document
    for part in filter(None, path.split(".")):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise ValueError(f"there is no {path} in what it says")
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ValueError(f"{path or 'what it says'} is no number")
    return float(value)
