"""Write edgepipe/wheels.json: which Linux wheels of the runtimes the package index has, and what they really need.

Asks the index that pip is set up for, through pip. Then, until nothing changes, downloads each wheel that would be
advised for some board and notes which glibc and libstdc++ its libraries bind to. Run by hand, some minutes:

    python scripts/wheel_snapshot.py
"""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

from edgepipe import elf, plugins, wheels

PYTHONS = range(8, 15)
MACHINES = ("aarch64", "armv7l", "x86_64")
GLIBCS = range(27, 43)
LIBSTDCXX = (0, 28, 30, 33)  # unknown, GCC 10, 12, 14
OUT = Path("edgepipe/wheels.json")


def main() -> int:
    """Write the file; returns the exit code."""
    runtimes = [plugins.load("agent.runtimes", name) for name in plugins.names("agent.runtimes")]
    names = {way.requirement.split("<")[0] for plugin in runtimes for way in plugin.WHEELS}
    names |= {each.split("<")[0] for plugin in runtimes for way in plugin.WHEELS for each in way.also}
    packages = {name: listing(name) for name in sorted(names)}
    for name, versions in (json.loads(OUT.read_text())["packages"] if OUT.exists() else {}).items():
        known = {entry["version"]: entry.get("needs") for entry in versions}
        for entry in packages.get(name, []):
            if known.get(entry["version"]):
                entry["needs"] = known[entry["version"]]
    write(packages)
    while measure(packages):
        write(packages)
    return 0


def listing(package: str) -> list[dict[str, Any]]:
    """Return all released versions with a Linux wheel for Python 3.8 or newer, newest first."""
    from pip._internal.commands.download import DownloadCommand
    from pip._internal.index.collector import LinkCollector, parse_links
    from pip._internal.models.link import Link

    command = DownloadCommand("download", "")
    found: dict[Version, dict[str, Any]] = {}
    with command.main_context():
        options, _ = command.parse_args([package])
        collector = LinkCollector.create(command.get_default_session(options), options=options)
        for url in collector.search_scope.get_index_urls_locations(package):
            page = None if url.startswith("file:") else collector.fetch_response(Link(url))
            for link in parse_links(page) if page else ():
                if not link.filename.endswith(".whl") or link.is_yanked:
                    continue
                try:
                    _, version, _, tags = parse_wheel_filename(link.filename)
                except (InvalidVersion, ValueError):
                    continue
                if version.is_prerelease or not any(fits(tag) for tag in tags):
                    continue
                entry = found.setdefault(
                    version, {"version": str(version), "requires_python": link.requires_python or "", "tags": []}
                )
                entry["tags"].append(link.filename.removesuffix(".whl").split("-", 2)[2].split("-", 1))
    for entry in found.values():
        # A name may have a build number before its tags.
        entry["tags"] = sorted({rest if first.isdigit() else f"{first}-{rest}" for first, rest in entry["tags"]})
    return [found[version] for version in sorted(found, reverse=True)]


def fits(tag: Any) -> bool:
    """Whether a wheel is for some board."""
    linux = tag.platform == "any" or ("linux" in tag.platform and tag.platform.endswith(MACHINES))
    return linux and (tag.interpreter == "py3" or tag.interpreter in {f"cp3{minor}" for minor in PYTHONS})


def measure(packages: dict[str, list[dict[str, Any]]]) -> int:
    """Read the libraries of wheels that would be advised and were not read yet; returns how many there were."""
    wheels.snapshot.cache_clear()
    todo: dict[tuple[str, str, str], tuple[int, str]] = {}
    for minor, machine, glibc, libstdcxx in itertools.product(PYTHONS, MACHINES, GLIBCS, LIBSTDCXX):
        platform = wheels.Platform(machine, (3, minor), glibc, "glibc", libstdcxx)
        for runtime in plugins.names("agent.runtimes"):
            wheel = wheels.advise(runtime, platform).wheel
            if wheel:
                todo.setdefault((wheel.name, wheel.version, machine), (minor, wheel.tag.rsplit("-", 1)[1]))
    done = 0
    for (name, version, machine), (minor, platforms) in todo.items():
        entry = next(one for one in packages[name] if one["version"] == version)
        if machine in entry.get("needs", {}):
            continue
        entry.setdefault("needs", {})[machine] = needs(f"{name}=={version}", minor, platforms.split("."))
        print(name, version, machine, entry["needs"][machine], flush=True)
        done += 1
    return done


def needs(requirement: str, minor: int, platforms: list[str]) -> list[int]:
    """The newest glibc 2.N and GLIBCXX_3.4.N that the libraries in a wheel bind to."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        argv += ["--implementation", "cp", "--python-version", f"3.{minor}"]
        argv += [part for platform in platforms for part in ("--platform", platform)]
        subprocess.run([*argv, requirement], check=True, stderr=subprocess.DEVNULL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            libraries = [elf.needs(wheel.read(name)) for name in wheel.namelist() if ".so" in Path(name).name]
    read = [one for one in libraries if one]
    return [max((one.glibc for one in read), default=0), max((one.libstdcxx for one in read), default=0)]


def write(packages: dict[str, list[dict[str, Any]]]) -> None:
    """Write one version a line, so that a change can be read."""
    blocks = []
    for name, versions in packages.items():
        lines = ",\n".join("   " + json.dumps(entry, separators=(",", ":"), sort_keys=True) for entry in versions)
        blocks.append(f'  "{name}": [\n{lines}\n  ]')
    today = datetime.datetime.now(datetime.UTC).date()
    body = ",\n".join(blocks)
    OUT.write_text(f'{{"schema": "edgepipe.wheels/1", "taken": "{today}", "packages": {{\n{body}\n}}}}\n', "utf-8")


if __name__ == "__main__":
    sys.exit(main())
