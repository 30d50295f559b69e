"""The text of an inventory: YAML or INI in, hosts and groups as written out."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe.errors import UsageError

_MAX_FILE = 16 << 20
_MAX_RANGE = 100_000
_RANGE = re.compile(r"\[([0-9]+|[a-z]):([0-9]+|[a-z])(?::([0-9]+))?\]")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_SECTION = re.compile(r"\[([^\]:]+)(?::(children|vars))?\]\s*(?:#.*)?\Z")
_VAULT = b"$ANSIBLE_VAULT"
_GROUP_KEYS = ("hosts", "children", "vars")


@dataclass(frozen=True)
class Sealed:
    """A value that ansible-vault encrypted: kept closed."""


@dataclass
class Group:
    """A group as written: its own hosts, the names of its children, its variables."""

    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass
class Raw:
    """A whole inventory as written."""

    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """The group of this name, made where it is not there yet."""
        return self.groups.setdefault(name, Group())


def read_inventory(path: Path) -> Raw:
    """Read one file.

    Raises:
        UsageError: it is no inventory, or one that only Ansible can run.
    """
    where = str(path)
    if path.is_dir():
        raise UsageError("the inventory is a folder", where, "name one file of it")
    data = _bytes(path)
    if data.startswith(_VAULT):
        raise UsageError("the inventory is sealed by ansible-vault", where, "name one in the clear; seal single values")
    if data.startswith(b"#!") or (os.access(path, os.X_OK) and path.suffix not in {".yml", ".yaml", ".ini", ".json"}):
        raise UsageError("the inventory is a program", where, f"run it once: ansible-inventory -i {path} --list --yaml")
    text = _text(data, where)
    if path.suffix in {".yml", ".yaml", ".json"}:
        return _from_yaml(_yaml(text, where), where)
    return _from_ini(text, where)


def read_vars(folder: Path, name: str) -> dict[str, Any]:
    """The variables of a group or host in files of their own: ``folder/name`` with .yml, .yaml, .json or nothing.

    Raises:
        UsageError: a file that is no YAML mapping.
    """
    found: dict[str, Any] = {}
    if not _NAME.match(name) or not folder.is_dir():
        return found
    own = folder / name
    files = sorted(own.iterdir()) if own.is_dir() else [Path(f"{own}{end}") for end in ("", ".yml", ".yaml", ".json")]
    for file in files:
        if not file.is_file():
            continue
        data = _bytes(file)
        if data.startswith(_VAULT):  # all of it is closed, and stays so; nothing in it can be what edgepipe needs
            continue
        loaded = _yaml(_text(data, str(file)), str(file))
        found |= _variables(loaded, str(file))
    return found


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"can't read the inventory: {error.strerror}", str(path), "check the name") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"more than {_MAX_FILE >> 20} MiB", str(path), "is this an inventory?")
    return data


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where, "save it as UTF-8") from None


# YAML


@functools.cache
def _loader() -> Any:
    """Plain data alone; vaulted values stay sealed, a key given twice is an error."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if isinstance(name, str) and name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands here twice", key.start_mark)
                seen.add(name if isinstance(name, str) else "")
            return super().construct_mapping(node, deep)

    Loader.add_constructor("!vault", lambda *_: Sealed())
    Loader.add_constructor("!vault-encrypted", lambda *_: Sealed())
    Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
    return Loader


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"not valid YAML: {what}", f"{where}{line}", "correct the line") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"not valid YAML: {str(error)[:100]}", where, "correct it") from None


def _from_yaml(data: Any, where: str) -> Raw:
    if not isinstance(data, dict):
        raise UsageError("not an inventory", where, "groups at the top, e.g. all: {hosts: {pi-01: {}}}")
    if "plugin" in data:
        fix = "write what it finds down: ansible-inventory --list --yaml > inventory.yml"
        raise UsageError("an inventory plug-in of Ansible's", where, fix)
    raw = Raw()
    for name, body in data.items():
        _yaml_group(raw, str(name), body, where, 0)
    return raw


def _yaml_group(raw: Raw, name: str, body: Any, where: str, depth: int) -> None:
    _check(name, "group", where)
    if depth > 64:  # noqa: PLR2004 - deeper than anybody nests groups; an alias that holds itself would never end
        raise UsageError("groups are nested too deeply", where, "an alias that holds itself?")
    group = raw.group(name)
    if body is None:
        return
    if not isinstance(body, dict) or set(body) - set(_GROUP_KEYS):
        odd = (
            ", ".join(sorted(map(str, set(body) - set(_GROUP_KEYS)))) if isinstance(body, dict) else type(body).__name__
        )
        raise UsageError(f"group {name} holds {odd[:80]}", where, "a group has hosts, children and vars")
    hosts, children = body.get("hosts") or {}, body.get("children") or {}
    if not isinstance(hosts, dict) or not isinstance(children, dict):
        raise UsageError(f"hosts and children of {name} must be mappings", where, "write each with a colon: `pi-01:`")
    group.variables |= _variables(body.get("vars"), f"{where}, group {name}")
    for written, variables in hosts.items():
        for host in _expand(str(written), where):
            _add_host(raw, group, host, _variables(variables, f"{where}, host {host}"), where)
    for child, inner in children.items():
        group.children.append(str(child))
        _yaml_group(raw, str(child), inner, where, depth + 1)


def _variables(found: Any, where: str) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UsageError("variables must be a mapping", where, "write name: value")
    return {str(name): value for name, value in found.items()}


# INI


def _from_ini(text: str, where: str) -> Raw:
    raw, name, kind = Raw(), "ungrouped", ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped, at = line.strip(), f"{where}, line {number}"
        if not stripped or stripped[0] in "#;":
            continue
        if stripped.startswith("["):
            section = _SECTION.match(stripped)
            if section is None:
                raise UsageError(
                    f"not a section: {stripped[:80]}", at, "write [group], [group:children] or [group:vars]"
                )
            name, kind = section[1].strip(), section[2] or ""
            raw.group(_check(name, "group", at))
        elif kind == "children":
            raw.group(name).children.append(_check(stripped.split("#")[0].strip(), "group", at))
        elif kind == "vars":
            key, equals, value = stripped.partition("=")
            if not equals:
                raise UsageError(f"not a variable: {stripped[:80]}", at, "write name=value")
            raw.group(name).variables[key.strip()] = _literal(value.strip())
        else:
            _ini_host(raw, name, stripped, at)
    raw.groups.pop("ungrouped", None)
    return raw


def _ini_host(raw: Raw, group: str, line: str, at: str) -> None:
    try:
        written, *pairs = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"can't be read: {error}", at, "close the quote") from None
    variables = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"not a variable: {pair[:80]}", at, "write name=value after the host, without spaces")
        variables[key] = _literal(value)
    for host in _expand(written, at):
        name, colon, port = host.partition(":")
        own = {**variables, "ansible_port": int(port)} if colon and port.isdecimal() else variables
        _add_host(raw, raw.group(group), name if own is not variables else host, own, at)


def _literal(text: str) -> Any:
    """An INI value: a Python literal where it reads as one, as Ansible does; else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


# Both


def _add_host(raw: Raw, group: Group, name: str, variables: dict[str, Any], where: str) -> None:
    raw.hosts.setdefault(_check(name, "host", where), {}).update(variables)
    if name not in group.hosts:
        group.hosts.append(name)


def _check(name: str, noun: str, where: str) -> str:
    if not _NAME.match(name):
        fix = "letters, digits, dot, dash and underscore, at most 64; an address goes into ansible_host"
        raise UsageError(f"not a name of a {noun}: {name[:80]!r}", where, fix)
    return name


def _expand(name: str, where: str) -> list[str]:
    """``pi-[01:20]`` as the hosts it stands for."""
    found = _RANGE.search(name)
    if not found:
        return [name]
    first, last, step = found[1], found[2], int(found[3] or 1)
    if first.isdigit() != last.isdigit() or step < 1:
        raise UsageError(f"not a range: {name[:80]}", where, "write pi-[01:20] or pi-[a:f]")
    if first.isdigit():
        low, high = int(first), int(last)
        each = [str(value).zfill(len(first)) for value in range(low, min(high, low + _MAX_RANGE) + 1, step)]
    else:
        each = [chr(value) for value in range(ord(first), ord(last) + 1, step)]
    if not each or len(each) > _MAX_RANGE:
        raise UsageError(f"a range of {'nothing' if not each else 'too many'}: {name[:80]}", where, "low:high")
    return [host for value in each for host in _expand(name[: found.start()] + value + name[found.end() :], where)]
