"""What the agent finds on boards built of files, and what becomes of runtimes that die when they are imported."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.agent import health, meters, probe
from edgepipe.agent.jobs import Jobs
from edgepipe.agent.releases import Releases
from edgepipe.agent.store import Store
from edgepipe.codec import from_dict
from lab.shapes import BOARDS, build


@pytest.fixture
def store(tmp_path):
    found = Store(str(tmp_path / "root"))
    found.prepare()
    return found


def examine(store, root):
    jobs = Jobs(Releases(store), lambda: False, lambda phase, seconds: None, str(root))
    return health.examine(store, jobs, str(root))


@pytest.mark.parametrize(
    ("name", "cpu", "flags", "absent"),
    [
        ("pi4", "Cortex-A72", {"asimd"}, {"asimddp", "asimdhp", "atomics"}),
        ("pi5", "Cortex-A76", {"asimd", "asimddp", "asimdhp", "atomics"}, {"i8mm", "bf16"}),
        ("zero2w", "Cortex-A53", {"neon", "vfpv4"}, {"asimd", "asimddp"}),
        ("orin-nano", "Cortex-A78AE", {"asimddp", "asimdhp"}, {"i8mm"}),
        ("x86-mini", "Intel(R) N100", {"avx2", "avx_vnni"}, {"avx512_vnni"}),
    ],
)
def test_a_built_board_is_read(tmp_path, name, cpu, flags, absent):
    root = str(build(name, tmp_path))
    facts = BOARDS[name]
    board = probe.board({}, root)
    assert board.cpu == cpu and board.model == facts["model"] and board.os == facts["os"]
    assert flags <= set(board.isa) and not absent & set(board.isa)
    assert board.ram_bytes == facts["ram_kb"] * 1024 and board.governor == "ondemand"
    assert board.clocks["max_khz"] == [facts["khz"]] * facts["cores"]
    clocks = health.clocks(root)
    assert clocks.access == "write" and clocks.governor == "ondemand" and "performance" in clocks.available
    assert health.libstdcxx(root) == facts["libstdcxx"]
    assert health.l4t(root) == (("36.4.3", "6") if name == "orin-nano" else ("", ""))


def test_rights_to_the_clocks(tmp_path):
    root = build("pi4", tmp_path)
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.chmod(0o444)
    assert health.clocks(str(root)).access == "read-only"
    governor.chmod(0o644)
    if os.geteuid() == 0:
        # As an ordinary user would see it.
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            os._exit(0 if health.clocks(str(root)).access in ("denied", "absent") else 1)
        assert os.waitpid(pid, 0)[1] == 0
    governor.unlink()
    assert health.clocks(str(root)) == health.Clocks("absent")


def test_a_board_that_says_nothing(tmp_path, store):
    found = examine(store, tmp_path)
    assert found.clocks.access == "absent" and found.libstdcxx == 0 and found.l4t == found.jetpack == ""
    assert found.ram_available_bytes is None and found.disk_bytes >= found.disk_free_bytes > 0
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("\x1b[31m R(release) REVISION")
    assert health.l4t(str(tmp_path)) == ("", "")


def test_the_version_of_musl_comes_from_its_loader(tmp_path):
    (tmp_path / "lib").mkdir()
    loader = tmp_path / "lib/ld-musl-aarch64.so.1"
    assert probe._musl(str(tmp_path)) == ""
    loader.write_text("#!/bin/sh\necho 'musl libc (aarch64)\nVersion 1.2.5\nDynamic Program Loader' >&2\nexit 1\n")
    loader.chmod(0o755)
    assert probe._musl(str(tmp_path)) == "musl 1.2"


def test_every_python_is_found_once_and_broken_ones_are_left_out(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to(sys.executable)
    for name, text in {
        "python3.9": '#!/bin/sh\necho \'["/opt/python3.9", "3.9.2", "cpython-39-x86_64-linux-gnu", []]\'\n',
        "python3.8": "#!/bin/sh\nexit 1\n",
        "python3.7": "#!/bin/sh\necho 'hello'\n",
        "python3-config": '#!/bin/sh\necho \'["x", "9", "", []]\'\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    found = health.interpreters([str(folder), str(folder), str(tmp_path / "absent")])
    assert found[0].own and found[0].version == "{}.{}.{}".format(*sys.version_info[:3])
    assert found[0].soabi.startswith("cpython-3") and found[0].numpy
    assert [each.version for each in found[1:]] == ["3.9.2"] and not found[1].own


def fake_site(store, act, version="1.21.0"):
    """A runtime's folder on the board, as provisioning leaves one."""
    site = Path(store.path("sites", ".onnxruntime-0"))
    (site / "onnxruntime").mkdir(parents=True)
    (site / "onnxruntime" / "__init__.py").write_text(f"import os, signal, time\n__version__ = '{version}'\n{act}\n")
    info = site / f"onnxruntime-{version}.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_aarch64\n")
    (site / "site.json").write_text('{"files": []}')
    Path(store.path("sites", "onnxruntime")).symlink_to(site.name)


def trial(store, root="/"):
    jobs = Jobs(Releases(store), lambda: False, lambda phase, seconds: None, str(root))
    (found,) = health._try(store, jobs, "onnxruntime")
    return found


def test_a_runtime_that_imports(store):
    fake_site(store, "")
    found = trial(store)
    assert found.imports and found.version == "1.21.0" and found.tag == "cp311-cp311-manylinux_2_28_aarch64"


def test_sigill_on_import_names_the_wheel_and_the_cpu(tmp_path, store):
    fake_site(store, "os.kill(os.getpid(), signal.SIGILL)")
    found = trial(store, build("pi4", tmp_path / "tree"))
    assert not found.imports and found.signal == "SIGILL" and found.tag == "cp311-cp311-manylinux_2_28_aarch64"
    assert "onnxruntime 1.21.0 was killed by SIGILL during import on Cortex-A72" in found.error
    assert "instructions this CPU does not have" in found.error and "older wheel" in found.fix


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGKILL"])
def test_other_deaths_are_told_apart(store, name):
    fake_site(store, f"os.kill(os.getpid(), signal.{name})")
    found = trial(store)
    assert not found.imports and found.signal == name and "onnxruntime 1.21.0" in found.error


def test_an_import_error_is_no_signal(store):
    fake_site(store, 'raise ImportError("/lib/libm.so.6: version `GLIBC_2.34\' not found")')
    found = trial(store)
    assert not found.imports and found.signal == "" and "GLIBC_2.34" in found.error and "provision" in found.fix


def test_a_meter_that_fails_is_not_present(monkeypatch, tmp_path):
    closed = []
    here = meters.Meter("here", "VDD_IN", "board", lambda: 4.0, 20.0, close=lambda: closed.append(True))
    errors = {
        "broken": OSError("no such bus"),
        "absent": meters.NoMeterError("no INA3221 here"),
        "blocked": meters.NoMeterError("its rail is missing", present=True),
        "barred": PermissionError(13, "Permission denied", "/sys/energy_uj"),
    }

    def load(name):
        def find(root, rail):
            if name in errors:
                raise errors[name]
            return here

        return type(name, (), {"find": staticmethod(find)})

    monkeypatch.setattr(meters, "names", lambda: (*errors, "here"))
    monkeypatch.setattr(meters, "load", load)
    found = {each.name: each for each in health.meters_here(str(tmp_path))}
    assert found == {
        "absent": health.MeterFound("absent", False, "no INA3221 here"),
        "blocked": health.MeterFound("blocked", False, "its rail is missing", blocked=True),
        "barred": health.MeterFound(
            "barred", False, "permission denied: barred is read from /sys/energy_uj", blocked=True
        ),
        "broken": health.MeterFound("broken", False, "broken can't be read: no such bus", blocked=True),
        "here": health.MeterFound("here", True, "VDD_IN, board"),
    }
    assert closed == [True]


def test_a_board_without_a_meter_says_why(tmp_path):
    found = {each.name: each for each in health.meters_here(str(build("pi4", tmp_path)))}
    assert not found["null"].present and "a Raspberry Pi 4 has no current sensor" in found["null"].reason


def test_doctor_over_the_wire(tmp_path, pyz):
    """The zipapp itself, as a board runs it, on a built tree."""
    root = build("orin-nano", tmp_path / "tree")
    # The end of stdin would tell the agent that the host has gone, so it stays open.
    with subprocess.Popen(
        [sys.executable, str(pyz), "serve", "--sysfs-root", str(root), "--root", str(tmp_path / "r")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as agent:  # fmt: skip
        agent.stdin.write(b'{"verb": "doctor"}\n{"verb": "doctor", "args": {"path": "/"}}\n')
        agent.stdin.flush()
        replies = (json.loads(line) for line in agent.stdout)
        good, bad = itertools.islice((each for each in replies if "ok" in each), 2)
    found = from_dict(health.Health, good["result"])
    assert found.l4t == "36.4.3" and found.jetpack == "6" and found.clocks.governor == "ondemand"
    assert any(each.own for each in found.interpreters) and found.disk_free_bytes > 0
    assert {each.runtime for each in found.trials if each.imports} == {"onnxruntime", "openvino", "tflite"}
    assert bad["error"]["kind"] == "IntegrityError"
