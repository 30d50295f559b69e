"""The wheel advice against the kept index: the table of versions, the known traps, and what is said where none fits."""

import dataclasses
import os
from pathlib import Path

import pytest

from edgepipe import elf, plugins, targets, wheels
from edgepipe.agent.health import Clocks, Health, Interpreter, Trial
from edgepipe.errors import BoardError
from edgepipe.schema import Board
from edgepipe.wheels import Platform, Wheel, advise
from tests.wheel_kit import library

# On a Debian 12 or newer: glibc 2.36, libstdc++ of GCC 12.
TABLE = {
    (3, 8): ("1.19.2", None, "2024.4.0"),
    (3, 9): ("1.19.2", "2.1.0", "2025.3.0"),
    (3, 10): ("1.23.2", "2.3.0", "2026.4.1"),
    (3, 11): ("1.31.1", "2.3.0", "2026.4.1"),
    (3, 12): ("1.31.1", "2.3.0", "2026.4.1"),
    (3, 13): ("1.31.1", "2.3.0", "2026.4.1"),
}
A72 = ["fp", "asimd", "evtstrm", "crc32", "cpuid"]
A76 = [*A72, "atomics", "asimdhp", "asimddp"]
BOARD = Board("aarch64", "cpu", A72, 4, None, "os", "k", "3.10.12", "glibc 2.35")
HEALTH = Health([], [], Clocks("absent"), [], 30, "", "", None, None, 10**9, 10**9)


def named(runtime, platform, *more):
    wheel = advise(runtime, platform, *more).wheel
    return f"{wheel.name} {wheel.version}" if wheel else None


@pytest.mark.parametrize("glibc", [35, 36, 39, 41])
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("python", TABLE)
def test_the_table_on_64_bits(python, machine, glibc):
    platform = Platform(machine, python, glibc, libstdcxx=30)
    ort, litert, openvino = TABLE[python]
    assert named("onnxruntime", platform, A72) == f"onnxruntime {ort}"
    assert named("openvino", platform, A72) == f"openvino {openvino}"
    assert named("tflite", platform, A72) == (f"ai-edge-litert {litert}" if litert else "tflite-runtime 2.14.0")


@pytest.mark.parametrize("python", TABLE)
def test_the_table_on_32_bits(python):
    platform = Platform("armv7l", python, 36)
    assert named("onnxruntime", platform) is None and named("openvino", platform) is None
    advice = advise("tflite", platform)
    if python > (3, 11):
        assert advice.wheel is None and "Python 3.8 to 3.11 only" in advice.reason
        return
    assert advice.wheel == Wheel("tflite-runtime", "2.14.0", f"cp3{python[1]}-cp3{python[1]}-manylinux_2_34_armv7l")
    # Nobody publishes numpy for it: the board's own has to do, and pip must not look for it.
    assert advice.requirements == ["tflite-runtime==2.14.0"] and advice.from_board == ["numpy<2"]


def test_every_advice_fits_by_the_rules_of_packaging_and_is_the_newest_that_does():
    from packaging.tags import parse_tag
    from packaging.version import Version

    seen = 0
    for minor in range(8, 14):
        for machine in ("aarch64", "armv7l", "x86_64"):
            for glibc in range(28, 42):
                platform = Platform(machine, (3, minor), glibc)
                for runtime in plugins.names("agent.runtimes"):
                    wheel = advise(runtime, platform).wheel
                    if wheel is None:
                        continue
                    seen += 1
                    assert parse_tag(wheel.tag) & platform.accepted()
                    newer = [e for e in wheels.snapshot()[wheel.name] if Version(e["version"]) > Version(wheel.version)]
                    top = plugins.load("agent.runtimes", runtime).WHEELS
                    bound = next(w for w in top if w.requirement.startswith(wheel.name)).requirement.split("<=")[1]
                    for entry in newer:
                        needs = entry.get("needs", {}).get(machine, [0, 0])[0]
                        fits = any(parse_tag(tag) & platform.accepted() for tag in entry["tags"])
                        assert not fits or needs > glibc or Version(entry["version"]) > Version(bound)
    assert seen > 400


def test_tags_that_promise_too_much_are_not_believed():
    # ai-edge-litert 2.3.0 is named for glibc 2.27, and its library binds to symbols of 2.34 and of GCC 12.
    old = Platform("aarch64", (3, 10), 31)
    assert named("tflite", old) == "ai-edge-litert 2.1.0"
    assert "needs glibc 2.34, whatever its name says" in advise("tflite", old).held_back
    assert named("tflite", Platform("aarch64", (3, 10), 35, libstdcxx=28)) == "ai-edge-litert 2.1.0"
    # tflite-runtime 2.12.0 is named for glibc 2.17 and needs 2.34, which 2.13.0 does not.
    assert named("tflite", Platform("aarch64", (3, 8), 31)) == "tflite-runtime 2.13.0"


def test_jetpacks_are_capped_by_their_python():
    assert named("onnxruntime", Platform("aarch64", (3, 8), 31)) == "onnxruntime 1.19.2"  # JetPack 5
    assert named("openvino", Platform("aarch64", (3, 8), 31)) == "openvino 2024.4.0"
    six = advise("onnxruntime", Platform("aarch64", (3, 10), 35))  # JetPack 6
    assert six.requirements == ["onnxruntime==1.23.2"] and six.held_back == "onnxruntime 1.31.1 needs Python >=3.11"


def test_a_version_that_dies_on_a_cpu_is_passed_over(monkeypatch):
    platform = Platform("aarch64", (3, 11), 36)
    plugin = plugins.load("agent.runtimes", "onnxruntime")
    monkeypatch.setattr(plugin, "WHEELS", (plugin.WHEELS[0]._replace(requirement="onnxruntime<=1.21.0"),))
    assert named("onnxruntime", platform, A76) == named("onnxruntime", platform) == "onnxruntime 1.21.0"
    passed = advise("onnxruntime", platform, A72)
    assert passed.wheel.version == "1.20.1" and "dies on a CPU without atomics (https://" in passed.held_back
    assert "SIGILL" in wheels.crash("onnxruntime", "onnxruntime", "1.21.0", "aarch64", A72)
    assert not wheels.crash("onnxruntime", "onnxruntime", "1.21.1", "aarch64", A72)
    assert not wheels.crash("onnxruntime", "onnxruntime", "1.21.0", "aarch64", A76)
    assert not wheels.crash("onnxruntime", "onnxruntime", "1.21.0", "x86_64", ["avx2"])
    assert wheels.crash("tflite", "tflite-runtime", "2.14.0", "armv7l", ["half", "vfp"])


def test_what_crashed_on_the_board_itself_is_not_advised_again():
    died = Trial("onnxruntime", "onnxruntime", "1.31.1", "", imports=False, signal="SIGILL")
    crashed = wheels.crashed_there(dataclasses.replace(HEALTH, trials=[died]))
    found = advise("onnxruntime", Platform("aarch64", (3, 11), 36), A72, crashed)
    assert found.wheel.version == "1.31.0" and found.held_back == "onnxruntime 1.31.1 crashed on this board"
    hung = dataclasses.replace(died, signal="SIGKILL")
    assert wheels.crashed_there(dataclasses.replace(HEALTH, trials=[hung])) == ()


def test_numpy_of_the_board_where_nobody_publishes_it():
    advice = advise("tflite", Platform("armv7l", (3, 11), 36))

    def board_with(numpy):
        own = Interpreter("/usr/bin/python3", "3.11.2", "", numpy, own=True)
        return dataclasses.replace(HEALTH, interpreters=[own])

    assert wheels.missing(advice, board_with("1.24.2")) == ""
    assert "apt-get install python3-numpy" in wheels.missing(advice, board_with(""))
    assert "has numpy 2.1.0" in wheels.missing(advice, board_with("2.1.0"))
    assert "needs numpy<2" in wheels.missing(advice, HEALTH)


def test_why_there_is_none():
    for platform, why in (
        (Platform("aarch64", (3, 12), 2, "musl"), "has no wheel for musl 1.2, only cp312"),
        (Platform("armv6l", (3, 11), 36), "no wheel for armv6l"),
        (Platform("riscv64", (3, 11), 36), "no wheel for riscv64"),
        (Platform("aarch64", (3, 13), 17), "no wheel for glibc 2.17"),
        (Platform("aarch64", (3, 7), 36), "needs Python >=3.11"),
    ):
        advice = advise("onnxruntime", platform)
        assert advice.wheel is None and why in advice.reason, advice
    assert advise("null", Platform("aarch64", (3, 11), 36)).reason == "it needs no package"


SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "targets").glob("*.toml"))


@pytest.mark.parametrize("name", [name for name in SHIPPED if targets.load(name).runtimes])
def test_the_shipped_targets_say_what_would_be_advised(name):
    target = targets.load(name)
    # JetPack 4 comes with 3.6; the agent needs the 3.8 beside it.
    python = "3.8" if name == "jetson-nano" else target.system.python
    major, minor = (int(part) for part in python.split("."))
    platform = Platform(target.arch, (major, minor), int(target.system.glibc.split(".")[1]))
    for runtime, said in target.runtimes.items():
        wheel = advise(runtime, platform, target.hardware.isa).wheel
        assert said.version in (f"{wheel.name} {wheel.version}", wheel.version) if wheel else said.reason


def test_every_tag_up_to_the_boards_glibc():
    tags = Platform("aarch64", (3, 10), 35).tags()
    assert tags[0] == "manylinux_2_35_aarch64" and tags[-1] == "linux_aarch64"
    assert "manylinux_2_17_aarch64" in tags and "manylinux2014_aarch64" in tags and "manylinux_2_36_aarch64" not in tags
    assert not any("manylinux1" in tag or "2010" in tag for tag in tags)
    assert {"manylinux1_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64"} < set(
        Platform("x86_64", (3, 11), 36).tags()
    )
    assert Platform("x86_64", (3, 11), 2, "musl").tags()[:2] == ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"]


def test_platform_comes_from_what_the_board_says():
    assert wheels.platform_of(BOARD, 30) == Platform("aarch64", (3, 10), 35, "glibc", 30)
    assert wheels.platform_of(dataclasses.replace(BOARD, libc="musl 1.2")).libc == "musl"
    for change in ({"libc": "uClibc 1.0"}, {"libc": ""}, {"python": "three"}):
        with pytest.raises(BoardError):
            wheels.platform_of(dataclasses.replace(BOARD, **change))


def test_what_a_library_needs():
    assert elf.needs(library()) == elf.Needs("aarch64", 34, 30)
    assert elf.needs(library(40, wide=False)) == elf.Needs("armv7l", 34, 30)
    assert elf.needs(library(62, versions=(b"GLIBC_PRIVATE", b"GLIBC_2.2.5"))) == elf.Needs("x86_64")
    assert elf.needs(library(21)).machine == ""
    import numpy

    found = elf.needs(Path(numpy._core._multiarray_umath.__file__).read_bytes())
    assert found.machine == os.uname().machine and 17 <= found.glibc <= 40


def test_damaged_libraries_are_no_accident():
    whole = library()
    assert elf.needs(b"") is elf.needs(b"#!/bin/sh" * 20) is elf.needs(b"\x7fELF" + b"\2\2" + bytes(100)) is None
    for cut in range(len(whole)):
        elf.needs(whole[:cut])
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] = 0xFF
        elf.needs(bytes(broken))


@pytest.mark.registry
@pytest.mark.timeout(1800)
def test_the_index_agrees_with_the_snapshot(tmp_path):
    """For each row of the table, pip itself would take the very wheel that is advised."""
    import json
    import subprocess
    import sys

    wrong = []
    for machine in ("aarch64", "x86_64", "armv7l"):
        for python in TABLE:
            platform = Platform(machine, python, 36)
            for runtime in ("onnxruntime", "openvino", "tflite"):
                advice = advise(runtime, platform)
                tested = [way.requirement for way in plugins.load("agent.runtimes", runtime).WHEELS]
                found = None
                for requirement in tested:
                    argv = [
                        sys.executable,
                        "-m",
                        "pip",
                        "install",
                        "-q",
                        "--dry-run",
                        "--ignore-installed",
                        "--no-deps",
                    ]
                    argv += [
                        "--only-binary=:all:",
                        "--implementation",
                        "cp",
                        "--python-version",
                        "{}.{}".format(*python),
                    ]
                    argv += [part for tag in platform.tags() for part in ("--platform", tag)]
                    argv += ["--target", str(tmp_path / "none"), "--report", "-", requirement]
                    done = subprocess.run(argv, capture_output=True, check=False)
                    if done.returncode == 0:
                        url = json.loads(done.stdout)["install"][0]["download_info"]["url"]
                        found = url.rpartition("/")[2]
                        break
                    assert b"No matching distribution" in done.stderr, done.stderr[-500:]
                wheel = advice.wheel
                stem = f"{wheel.name.replace('-', '_')}-{wheel.version}-" if wheel else None
                if (found is None) != (wheel is None) or (
                    wheel and not (found.startswith(stem) and found.endswith(f"{wheel.tag}.whl"))
                ):
                    wrong.append((machine, python, runtime, wheel, found))
    assert not wrong
