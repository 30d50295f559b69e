"""Boards as data: a TOML file each, searched in ./targets, the user's configuration folder, then the shipped ones.

A host of the inventory (`edgepipe.inventory.find`) is a target too, like the kind its variables or groups name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe import inventory, paths, plugins
from edgepipe.agent import meters as agent_meters
from edgepipe.agent.meters import BOUNDARIES
from edgepipe.codec import from_dict
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.link import Address, Endpoint, parse_address
from edgepipe.schema import NAME

_MAX_LIKE = 4
_MAX_FILE = 256 << 10
# What every meter that this host reads takes in [meter.options], beside its own.
METER_OPTIONS = ("boundary", "rate_hz", "resolution_w")
MOST_HZ = 1000.0


@dataclass(frozen=True)
class Hardware:
    """What the maker says of the board; empty where it is the machine at hand. RAM in MB, clock in MHz."""

    soc: str = ""
    cpu: str = ""
    arch: str = ""
    isa: list[str] = field(default_factory=list)
    cores: int = 0
    clock_mhz: int = 0
    ram_mb: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class System:
    """The usual operating system of the board, with its Python and C library."""

    os: str = ""
    python: str = ""
    glibc: str = ""


@dataclass(frozen=True)
class Wheel:
    """The newest version of a runtime that installs on that system, or the reason why none does."""

    version: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Caps:
    """The newest ONNX opset and IR version that the board's ONNX Runtime loads; 0 is not known."""

    onnx_opset: int = 0
    onnx_ir: int = 0


@dataclass(frozen=True)
class Meter:
    """The power meter: its plug-in's name, or the reason why the board has none of its own.

    A meter on the board needs no more; ``rail`` chooses one of several rails. One that this host reads has an
    ``address``, and ``options`` of its own.
    """

    name: str = ""
    reason: str = ""
    rail: str = ""
    address: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def on_host(self) -> bool:
        """Whether this host reads it."""
        return bool(self.name) and self.name not in agent_meters.names()


@dataclass(frozen=True)
class Limits:
    """Where the board slows down: degrees C, and the watts it may draw for long; 0 is not published."""

    throttle_c: float = 0.0
    soft_c: float = 0.0
    power_modes_w: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A board, or a kind of board. ``host`` is empty in shipped files: ``--host`` or a file of the user's gives it."""

    name: str
    description: str = ""
    link: str = "ssh"
    host: str = ""
    python: str = "python3"
    root: str = "~/.edgepipe"
    identity: str = ""
    like: str = ""
    hardware: Hardware = field(default_factory=Hardware)
    system: System = field(default_factory=System)
    runtimes: dict[str, Wheel] = field(default_factory=dict)
    caps: Caps = field(default_factory=Caps)
    meter: Meter = field(default_factory=Meter)
    limits: Limits = field(default_factory=Limits)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def address(self) -> Address | None:
        """Where the board is, if that is known."""
        return parse_address(self.host) if self.host else None

    @property
    def arch(self) -> str:
        """The board's machine name, as ``uname -m`` says it; empty where it is the machine at hand."""
        return self.hardware.arch

    @property
    def opset(self) -> int | None:
        """The newest ONNX opset the board's runtime loads, or None."""
        return self.caps.onnx_opset or None

    @property
    def ir_version(self) -> int | None:
        """The newest ONNX IR version the board's runtime loads, or None."""
        return self.caps.onnx_ir or None

    def endpoint(self) -> Endpoint:
        """What the link needs.

        Raises:
            UsageError: a board behind SSH without an address.
        """
        if self.link == "ssh" and not self.host:
            raise UsageError(
                f"target {self.name} is a kind of board, and where yours is was not said",
                f"target {self.name}",
                "add --host [user@]name[:port], e.g. --host pi@raspberrypi.local; or keep it: "
                f"edgepipe targets add NAME --like {self.name} --host pi@raspberrypi.local",
            )
        return Endpoint(self.name, self.address, self.python, self.root, self.identity)


def names() -> dict[str, Path]:
    """Return every target's name and file; of two with one name the first found wins."""
    found: dict[str, Path] = {}
    for folder in paths.search("targets"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def listing() -> list[str]:
    """Return every target's name: the working folder's first, then the user's, then the shipped ones."""
    order = [path.stem for folder in paths.search("targets") for path in sorted(folder.glob("*.toml"))]
    return list(dict.fromkeys(order))


def load(name: str, host: str | None = None) -> Target:
    """Load a target; ``host`` (``[user@]name[:port]``) takes the place of the file's own.

    Raises:
        UsageError: no such target (near names are given), or a mistake in its file.
    """
    found = None if name in names() else _in_inventory(name)
    if found:
        return of_host(found, host)
    data = _merged(name, ())
    if host is not None:
        if data.get("link", "ssh") != "ssh":
            raise UsageError(
                f"target {name} is always on this machine, it takes no --host", "--host", "leave --host away"
            )
        data["host"] = str(parse_address(host))
    return _build(name, data, str(names()[name]))


def of_host(found: inventory.Host, host: str | None = None) -> Target:
    """A host of an inventory as a target: like what ``edgepipe_target`` or the name of one of its groups says.

    A group ``jetson_orin_nano`` is the kind ``jetson-orin-nano``. ``ansible_host``, ``_port``, ``_user`` and
    ``_python_interpreter`` say where it is, ``ansible_ssh_private_key_file`` which key to use; ``edgepipe_python`` and
    ``edgepipe_root`` come first.

    Raises:
        UsageError: a kind nobody knows, a sealed or templated value, a connection other than SSH or local.
    """
    kinds = [group.replace("_", "-") for group in found.groups]
    kind = found.text("edgepipe_target") or next((kind for kind in reversed(kinds) if kind in names()), "")
    data: dict[str, Any] = _merged(kind, ()) if kind else {}
    where = f"host {found.name} of the inventory"
    link = found.text("ansible_connection", data.get("link", "ssh"))
    if link not in {"ssh", "paramiko", "paramiko_ssh", "local", *_links()}:
        raise UsageError(f"edgepipe connects by SSH, not by {link}", where, "take ansible_connection out, or ssh")
    data["link"] = link if link in _links() else "ssh"
    if data["link"] == "ssh":
        name = found.text("ansible_host", found.text("ansible_ssh_host", found.name))
        user = found.text("ansible_user", found.text("ansible_ssh_user"))
        port = found.text("ansible_port", found.text("ansible_ssh_port"))
        name = f"[{name}]" if ":" in name and port else name
        data["host"] = str(parse_address(host or (f"{user}@" if user else "") + name + (f":{port}" if port else "")))
    python = found.text("edgepipe_python", found.text("ansible_python_interpreter"))
    if python and not python.startswith("auto"):
        data["python"] = python
    if identity := found.text("ansible_ssh_private_key_file", found.text("ansible_private_key_file")):
        data["identity"] = identity
    if root := found.text("edgepipe_root"):
        data["root"] = root
    return _build(found.name, data, where)


def _in_inventory(name: str) -> inventory.Host | None:
    path = inventory.find()
    return inventory.load(path).hosts.get(name) if path else None


def _links() -> list[str]:
    return [kind for kind in plugins.names("link") if kind != "pins"]


def add(name: str, like: str, host: str, identity: str = "") -> Path:
    """Write a target of the user's own that is like another one, at ``host``; returns its file.

    ``identity`` is the key file to log in with, where not those that the SSH configuration names.

    Raises:
        UsageError: a bad name or address, no such kind of board or key, or the file is there already.
    """
    _check_name(name)
    address = parse_address(host)
    base = load(like)
    if base.link != "ssh":
        raise UsageError(f"{like} is always on this machine", "--like", "name a board, e.g. --like rpi4")
    if name == like:
        raise UsageError(
            f"a target can't be like itself: {name}", "targets add", "choose another name, e.g. my-" + name
        )
    path = paths.config_home() / "targets" / f"{name}.toml"
    if path.exists():
        raise UsageError(f"target {name} exists already", str(path), "edit that file, or choose another name")
    values = {"like": like, "host": str(address)}
    if identity:
        file = Path(identity).expanduser().absolute()
        if not file.is_file():
            raise UsageError(f"no such key file: {file}", "--identity", "name the private key, e.g. ~/.ssh/id_ed25519")
        values["identity"] = str(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    return path


def _check_name(name: str) -> None:
    if not NAME.match(name) or name.startswith("."):
        raise UsageError(
            f"not a target name: {name[:64]!r}", "targets", "use letters, digits, dot, dash and underscore"
        )


def _merged(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Read a target's file over that of the target it is like. Tables are merged key by key."""
    _check_name(name)
    known = names()
    if name not in known:
        raise plugins.unknown("target", name, list(known))
    if name in seen or len(seen) >= _MAX_LIKE:
        raise UsageError(
            f"targets that are like each other: {' -> '.join((*seen, name))}", str(known[name]), "correct `like`"
        )
    own = _read(known[name])
    if "like" not in own:
        return own
    base = _merged(str(own["like"]), (*seen, name))
    for key, value in own.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise UsageError("the file is too large for a target", str(path), "a target file is a page of TOML")
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", str(path), "correct the line") from None
    except OSError as error:
        raise UsageError(f"can't read the target: {error.strerror}", str(path)) from None


def _build(name: str, data: dict[str, Any], where: str) -> Target:
    if "name" in data:
        raise UsageError("a target's name is the name of its file", where, "remove the line `name = ...`")
    _check_keys(Target, data, where)
    try:
        target = from_dict(Target, {**data, "name": name}, where=name)
    except EdgepipeError as error:
        raise UsageError(f"{error.what} ({error.where})", where, "correct the value") from None
    if target.link not in _links():
        raise plugins.unknown("link", target.link, _links())
    for runtime, wheel in target.runtimes.items():
        if bool(wheel.version) == bool(wheel.reason):
            raise UsageError(f"runtime {runtime} needs either a version or a reason", where, "give one of the two")
    if target.host:
        parse_address(target.host)
    _check_meter(target.meter, where)
    return target


def _check_meter(meter: Meter, where: str) -> None:
    """Refuse a meter nobody knows, and options it does not have."""
    on_host = plugins.names("meters")
    known = tuple(sorted({*agent_meters.names(), *on_host}))
    if meter.name and meter.name not in known:
        raise plugins.unknown("meter", meter.name, known)
    if not meter.on_host:
        if meter.address or meter.options:
            name = meter.name or "the board's own meter"
            raise UsageError(f"{name} is read on the board: it has neither address nor options", where, "remove them")
        return
    options = (*plugins.load("meters", meter.name).OPTIONS, *METER_OPTIONS)
    if "password" in meter.options:
        fix = "name the variable or file that holds it: password_env or password_file"
        raise UsageError("a password in a target's file", where, fix)
    for key in meter.options:
        if key not in options:
            raise plugins.unknown(f"option of meter {meter.name}", key, options)
    for key in ("rate_hz", "resolution_w"):
        value = meter.options.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST_HZ:
            raise UsageError(f"{key} must be a number above 0, at most {MOST_HZ:g}", where, "correct the value")
    if meter.options.get("boundary", BOUNDARIES[0]) not in BOUNDARIES:
        raise plugins.unknown("boundary", str(meter.options["boundary"]), BOUNDARIES)


def _check_keys(kind: Any, data: Any, where: str) -> None:
    """Refuse keys that mean nothing, and name the near one, at every level."""
    if not isinstance(data, dict):
        return
    hints = typing.get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known here: {', '.join(hints)}"
            raise UsageError(f"unknown key {key!r}", where, fix)
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            _check_keys(hint, value, where)
        elif key == "runtimes" and isinstance(value, dict):
            for wheel in value.values():
                _check_keys(Wheel, wheel, where)
