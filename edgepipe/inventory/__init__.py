"""An Ansible inventory, read and never run: hosts, groups, their variables, and patterns that choose among them.

YAML and INI files are read, with the folders ``group_vars`` and ``host_vars`` beside them. What Ansible would compute
(plug-ins, scripts, templates, vaults) is not: a file of that sort is refused, a sealed or templated value is kept as it
is and refused only where it would be needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe import plugins
from edgepipe.errors import UsageError
from edgepipe.inventory import _patterns
from edgepipe.inventory._files import Raw, Sealed, read_inventory, read_vars

VARIABLE = "EDGEPIPE_INVENTORY"
FILES = ("inventory.yml", "inventory.yaml", "inventory.ini", "inventory")
ALL, UNGROUPED = "all", "ungrouped"


@dataclass(frozen=True)
class Host:
    """A host with the groups it is in, parents included, and its variables after all of theirs."""

    name: str
    groups: tuple[str, ...] = ()
    variables: dict[str, Any] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """A variable as text.

        Raises:
            UsageError: it is sealed by a vault, a template, or no plain value.
        """
        value = self.variables.get(name)
        if value is None:
            return default
        where = f"host {self.name}, variable {name}"
        if isinstance(value, Sealed):
            fix = f"write {name} in the clear; edgepipe opens no vault and needs no password of yours"
            raise UsageError("the value is sealed by ansible-vault", where, fix)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UsageError(f"not a plain value: {str(value)[:80]}", where, "write a text or a number")
        if "{{" in str(value) or "{%" in str(value):
            raise UsageError(
                f"a template: {str(value)[:80]}", where, "write the value itself; edgepipe runs no templates"
            )
        return str(value)


@dataclass(frozen=True)
class Inventory:
    """Hosts by name, in the order of the file, and the members of each group, its children's included."""

    path: str
    hosts: dict[str, Host]
    groups: dict[str, tuple[str, ...]]

    def select(self, pattern: str) -> list[Host]:
        """Return the hosts that a pattern of Ansible's chooses, e.g. ``pi*:&lab:!pi-07``, in the order of the file.

        Raises:
            UsageError: a name or group that is not there, or a pattern that chooses nothing.
        """
        chosen = _patterns.select(pattern, list(self.hosts), self.groups, self.path)
        return [host for name, host in self.hosts.items() if name in chosen]


def find(path: str = "") -> Path | None:
    """The inventory to use: ``path``, else ``$EDGEPIPE_INVENTORY``, else one in the working folder; None without one.

    Raises:
        UsageError: the one that was named is not there.
    """
    named = path or os.environ.get(VARIABLE, "")
    if named:
        if not Path(named).exists():
            raise UsageError(f"no such inventory: {named}", "--inventory", "name a YAML or INI file of Ansible's")
        return Path(named)
    return next((Path(name) for name in FILES if Path(name).is_file()), None)


def load(path: Path) -> Inventory:
    """Read an inventory with the variables beside it.

    Raises:
        UsageError: a syntax error (with its line), a file Ansible would run, groups in a circle, an undefined group.
    """
    raw = read_inventory(path)
    groups = {name: _members(raw, name, (), str(path)) for name in raw.groups}
    named = {host for members in groups.values() for host in members}
    order = list(raw.hosts)
    groups[ALL] = tuple(order)
    groups[UNGROUPED] = tuple(host for host in order if host not in named)
    return Inventory(str(path), _hosts(raw, path.parent, groups, order), groups)


def _members(raw: Raw, name: str, seen: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The hosts of a group and of all below it."""
    if name in seen:
        raise UsageError(
            f"groups in a circle: {' -> '.join((*seen, name))}", where, "take one of them out of [children]"
        )
    group = raw.groups[name]
    found = dict.fromkeys(group.hosts)
    for child in group.children:
        if child not in raw.groups:
            raise plugins.unknown(f"group (a child of {name} in {where})", child, list(raw.groups))
        found |= dict.fromkeys(_members(raw, child, (*seen, name), where))
    return tuple(found)


def _hosts(raw: Raw, folder: Path, groups: dict[str, tuple[str, ...]], order: list[str]) -> dict[str, Host]:
    """Each host with its variables: those of `all`, of its groups from the outermost in, then its own."""
    depth = {name: _depth(raw, name) for name in raw.groups if name != ALL}
    ranked = sorted(depth, key=lambda name: (depth[name], name))
    of_group = {name: {**raw.groups[name].variables, **read_vars(folder / "group_vars", name)} for name in ranked}
    own_all = raw.groups[ALL].variables if ALL in raw.groups else {}
    everywhere = {**own_all, **read_vars(folder / "group_vars", ALL)}
    inside: dict[str, list[str]] = {name: [] for name in order}
    for group in ranked:
        for host in groups[group]:
            inside[host].append(group)
    hosts = {}
    for name in order:
        variables = dict(everywhere)
        for group in inside[name]:
            variables |= of_group[group]
        variables |= raw.hosts[name] | read_vars(folder / "host_vars", name)
        hosts[name] = Host(name, tuple(inside[name]) or (UNGROUPED,), variables)
    return hosts


def _depth(raw: Raw, name: str) -> int:
    """How many groups lie above: the variables of inner groups win."""
    above = [group for group, found in raw.groups.items() if name in found.children and group != ALL]
    return 1 + max((_depth(raw, group) for group in above), default=0)
