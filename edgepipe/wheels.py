"""Which wheel of a runtime fits a board and runs on its CPU, from a kept snapshot of the package index.

`wheels.json` lists the Linux wheels of each package with their tags (made by scripts/wheel_snapshot.py), and, where it
was found by reading the libraries inside, the C and C++ library they really need: tags have been too modest
(https://github.com/tensorflow/tensorflow/issues/59631).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import plugins
from edgepipe.errors import BoardError

if TYPE_CHECKING:
    from edgepipe.agent.health import Health
    from edgepipe.schema import Board

_SNAPSHOT = Path(__file__).with_name("wheels.json")
# The oldest glibc that PEP 600 tags exist for, by machine; PEP 513, 571 and 599 gave names to three of them.
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17, "armv7l": 17}
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


@dataclass(frozen=True)
class Platform:
    """What wheels must fit: the board's machine name, its Python as (major, minor), the minor version of its libc.

    ``libc`` is "glibc" or "musl"; ``libstdcxx`` is the N of the newest GLIBCXX_3.4.N there, 0 where nobody looked.
    """

    machine: str
    python: tuple[int, int]
    glibc: int
    libc: str = "glibc"
    libstdcxx: int = 0

    def tags(self) -> list[str]:
        """Every platform tag that fits, newest first: pip takes each literally and expands none."""
        if self.libc == "musl":
            found = [f"musllinux_1_{minor}_{self.machine}" for minor in range(self.glibc, -1, -1)]
            return [*found, f"linux_{self.machine}"]
        found = []
        for minor in range(self.glibc, _OLDEST_GLIBC.get(self.machine, self.glibc + 1) - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY and (minor == 17 or self.machine == "x86_64"):  # noqa: PLR2004 - PEP 599 added machines
                found.append(f"{_LEGACY[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    def accepted(self) -> AbstractSet[Any]:
        """All tags of wheels that fit, as `packaging.tags.Tag`."""
        return _ranks(self).keys()

    def __str__(self) -> str:
        """Render for people."""
        return f"Python {self.python[0]}.{self.python[1]}, {self.machine}, {self.c_library}"

    @property
    def c_library(self) -> str:
        """The C library with its version, e.g. "glibc 2.36"."""
        return f"{self.libc} {2 if self.libc == 'glibc' else 1}.{self.glibc}"


@dataclass(frozen=True)
class Wheel:
    """A wheel that fits; ``tag`` is the part of its name that says so, e.g. ``cp311-cp311-manylinux_2_28_aarch64``."""

    name: str
    version: str
    tag: str


@dataclass(frozen=True)
class Advice:
    """The wheel to take for a runtime, or None. ``requirements`` is what to ask pip for.

    ``tested`` is the range of versions edgepipe was tested with. ``reason`` says why there is no wheel; ``held_back``
    why it is not the newest tested. ``from_board`` names packages that nobody publishes for the machine, which the
    board's own distribution must bring.
    """

    runtime: str
    wheel: Wheel | None
    requirements: list[str] = field(default_factory=list)
    tested: str = ""
    reason: str = ""
    held_back: str = ""
    from_board: list[str] = field(default_factory=list)


def platform_of(board: Board, libstdcxx: int = 0) -> Platform:
    """What wheels for a board must fit, from what its agent says.

    Raises:
        BoardError: the board does not run Linux with glibc or musl, or says nothing usable.
    """
    digits = board.python.split(".")
    libc, _, version = board.libc.partition(" ")
    minor = version.partition(".")[2].partition(".")[0]
    known = libc.lower() in ("glibc", "musl") and minor.isdigit()
    if not known or len(digits) < 2 or not all(d.isdigit() for d in digits[:2]):  # noqa: PLR2004
        raise BoardError(
            f"wheels need Linux with glibc, and the board says {board.libc or 'nothing'!r}, Python {board.python!r}",
            board.hostname or "the board",
            "install the runtime on the board by its own means",
        )
    return Platform(board.arch, (int(digits[0]), int(digits[1])), int(minor), libc.lower(), libstdcxx)


def advise(runtime: str, platform: Platform, isa: list[str] | None = None, crashed: tuple[str, ...] = ()) -> Advice:
    """Choose the wheel for a runtime: the newest tested version that fits the board and is not known to crash there.

    ``isa`` is the CPU's flags; without it no version is ruled out for the CPU's sake. ``crashed`` are versions that
    died on this very board, e.g. "onnxruntime 1.21.0".

    Raises:
        UsageError: no such runtime.
    """
    plugin = plugins.load("agent.runtimes", runtime)
    refused = []
    for wanted in plugin.WHEELS:
        found, why = _newest(wanted.requirement, platform, isa, plugin.CRASHES, crashed)
        if found:
            own = [name for name in wanted.also if not _published(name, platform)]
            asked = [f"{found.name}=={found.version}", *(each for each in wanted.also if each not in own)]
            return Advice(runtime, found, asked, wanted.requirement, held_back=why, from_board=own)
        refused.append(why)
    return Advice(runtime, None, reason="; ".join(refused) or "it needs no package")


def missing(advice: Advice, health: Health) -> str:
    """What the board's own distribution must bring for this wheel and does not; empty where all is there."""
    from packaging.requirements import Requirement

    own = next((each for each in health.interpreters if each.own), None)
    for each in advice.from_board:
        wanted = Requirement(each)
        have = own.numpy if own and wanted.name == "numpy" else ""
        if not have or not wanted.specifier.contains(have, prereleases=True):
            found = f"has {wanted.name} {have}" if have else f"lacks it (apt-get install python3-{wanted.name})"
            return f"needs {each}, which nobody publishes for this machine, and the board {found}"
    return ""


def crashed_there(health: Health) -> tuple[str, ...]:
    """The versions that died of an illegal instruction when the board imported them."""
    return tuple(f"{each.package} {each.version}" for each in health.trials if each.signal == "SIGILL")


def crash(runtime: str, package: str, version: str, machine: str, isa: list[str]) -> str:
    """Where it is known that this version dies with SIGILL on a CPU: the flag it lacks and the source; else empty."""
    found = _crash(plugins.load("agent.runtimes", runtime).CRASHES, package, version, machine, isa)
    return f"it dies with SIGILL on a CPU without {found.lacks} ({found.source})" if found else ""


def _crash(crashes: Any, package: str, version: str, machine: str, isa: list[str] | None) -> Any:
    from packaging.requirements import Requirement

    for each in crashes:
        known = Requirement(each.requirement)
        affected = known.name == package and known.specifier.contains(version, prereleases=True)
        if affected and isa and each.machine == machine and each.lacks not in isa:
            return each
    return None


def _newest(
    requirement: str, platform: Platform, isa: list[str] | None, crashes: Any, crashed: tuple[str, ...] = ()
) -> tuple[Wheel | None, str]:
    """The newest wheel that fits, and why it is not a newer one (or why there is none)."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    hurdle = ""
    for entry in snapshot().get(wanted.name, []):
        if not wanted.specifier.contains(entry["version"]):
            continue
        tag, why = _fits(entry, platform)
        if tag and f"{wanted.name} {entry['version']}" in crashed:
            tag, why = "", "crashed on this board"
        bad = _crash(crashes, wanted.name, entry["version"], platform.machine, isa)
        if tag and not bad:
            return Wheel(wanted.name, entry["version"], tag), hurdle
        why = why or f"dies on a CPU without {bad.lacks} ({bad.source})"
        # What stops the newest one says most.
        hurdle = hurdle or f"{wanted.name} {entry['version']} {why}"
    return None, hurdle or f"no wheel of {requirement} is known"


def _fits(entry: dict[str, Any], platform: Platform) -> tuple[str, str]:
    """The tag of a version's wheel that fits the platform, or why none does."""
    from packaging.specifiers import SpecifierSet

    version = "{}.{}".format(*platform.python)
    if not SpecifierSet(entry.get("requires_python") or "").contains(version):
        return "", f"needs Python {entry['requires_python']}"
    ranks = _ranks(platform)
    expanded = ((tag, _expand(tag) & ranks.keys()) for tag in entry["tags"])
    fitting = [(min(ranks[one] for one in own), tag) for tag, own in expanded if own]
    if not fitting:
        return "", _hurdle(entry["tags"], platform)
    glibc, libstdcxx = entry.get("needs", {}).get(platform.machine, (0, 0))
    if platform.libc == "glibc" and glibc > platform.glibc:
        return "", f"needs glibc 2.{glibc}, whatever its name says"
    if platform.libstdcxx and libstdcxx > platform.libstdcxx:
        return "", f"needs a libstdc++ with GLIBCXX_3.4.{libstdcxx}, the board's ends at 3.4.{platform.libstdcxx}"
    return min(fitting)[1], ""


def _hurdle(tags: list[str], platform: Platform) -> str:
    """Why no wheel of a version fits: no machine, else no Python, else the C library."""
    machine = [tag for tag in tags if tag.endswith((f"_{platform.machine}", "-any"))]
    if not machine:
        return f"has no wheel for {platform.machine}"
    python = "cp{}{}".format(*platform.python)
    own = [tag for tag in machine if tag.startswith((f"{python}-{python}-", "py3-"))]
    if not own:
        found = sorted({int(tag[3 : tag.index("-")]) for tag in machine if tag.startswith("cp3")})
        return f"has wheels for Python 3.{found[0]} to 3.{found[-1]} only" if found else f"has no wheel for {python}"
    return f"has no wheel for {platform.c_library}, only {', '.join(own)}"


def _published(requirement: str, platform: Platform) -> bool:
    """Whether any wheel of a helper package fits; a package the snapshot does not hold is taken to be there."""
    from packaging.requirements import Requirement

    return Requirement(requirement).name not in snapshot() or _newest(requirement, platform, None, ())[0] is not None


@functools.lru_cache(maxsize=64)
def _ranks(platform: Platform) -> dict[Any, int]:
    """Each tag the platform takes, and how good it is (0 is best), as `packaging` orders them."""
    from packaging import tags

    def all_tags() -> Iterator[Any]:
        interpreter = "cp{}{}".format(*platform.python)
        yield from tags.cpython_tags(platform.python, [interpreter], platform.tags())
        yield from tags.compatible_tags(platform.python, interpreter, platform.tags())

    return {tag: rank for rank, tag in reversed(list(enumerate(all_tags())))}


@functools.lru_cache(maxsize=4096)
def _expand(tag: str) -> frozenset[Any]:
    from packaging.tags import parse_tag

    return parse_tag(tag)


@functools.cache
def snapshot() -> dict[str, list[dict[str, Any]]]:
    """The kept index: for each package its versions, newest first."""
    packages = json.loads(_SNAPSHOT.read_text("utf-8"))["packages"]
    assert isinstance(packages, dict)
    return packages
