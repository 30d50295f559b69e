"""The doctor's conclusions for boards built of files, its document, its table and its exit codes."""

import contextlib
import dataclasses
import json
import types

import pytest

from edgepipe import board as board_module
from edgepipe import doctor
from edgepipe.agent import health as agent_health
from edgepipe.agent import probe
from edgepipe.agent.health import Clocks, Health, Interpreter, MeterFound, Trial
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import BusyError
from lab.shapes import build, process


def look(name, root, **changes):
    """A built board's facts and what its agent would add."""
    tree = str(build(name, root))
    board = dataclasses.replace(probe.board({}, tree), runtimes=[], **process(name))
    release, jetpack = agent_health.l4t(tree)
    own = Interpreter("/usr/bin/python3", board.python, "", "1.24.2", own=True)
    found = Health(
        [own], [], agent_health.clocks(tree), agent_health.meters_here(tree), agent_health.libstdcxx(tree),
        release, jetpack, 10**9, 10**8, 32 * 10**9, 20 * 10**9,
    )  # fmt: skip
    return board, dataclasses.replace(found, **changes)


def lines(found):
    return {check.topic: check for check in found.checks}


def wheel(found, runtime):
    each = next(each for each in found.runtimes if each.runtime == runtime)
    return f"{each.wheel.name} {each.wheel.version}" if each.wheel else None


EXPECTED = {
    "pi4": ("onnxruntime 1.31.1", "openvino 2026.4.1", "ai-edge-litert 2.3.0", "yellow", "saves size, not time"),
    "pi5": ("onnxruntime 1.31.1", "openvino 2026.4.1", "ai-edge-litert 2.3.0", "green", "fast"),
    "zero2w": (None, None, "tflite-runtime 2.14.0", "yellow", "not supported by tflite-runtime"),
    "orin-nano": ("onnxruntime 1.23.2", "openvino 2026.4.1", "ai-edge-litert 2.3.0", "green", "fast"),
    "x86-mini": ("onnxruntime 1.31.1", "openvino 2026.4.1", "ai-edge-litert 2.3.0", "green", "saves size"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_board_gets_its_wheels_and_its_int8(tmp_path, name):
    found = doctor.diagnose(name, *look(name, tmp_path))
    ort, openvino, tflite, int8, int4 = EXPECTED[name]
    assert (wheel(found, "onnxruntime"), wheel(found, "openvino"), wheel(found, "tflite")) == (ort, openvino, tflite)
    assert found.usable and lines(found)["tflite int8"].verdict == int8
    assert int4 in lines(found)["tflite int8"].text
    assert (
        lines(found)["tflite"].verdict == "yellow" and f"--target {name} --runtime tflite" in lines(found)["tflite"].fix
    )
    if ort is None:
        assert (
            lines(found)["onnxruntime"].verdict == "red" and "no wheel for armv7l" in lines(found)["onnxruntime"].text
        )
    json.dumps(to_dict(found), allow_nan=False)


def test_what_the_pi_4_is_told(tmp_path):
    found = lines(doctor.diagnose("rpi4", *look("pi4", tmp_path)))
    assert "lacks dot product" in found["cpu"].text and "Cortex-A72" in found["cpu"].text
    assert "may be slower than float32" in found["onnxruntime int8"].text and "measure" in found["onnxruntime int8"].fix
    assert "runs in float32: its 8-bit convolutions need dot products" in found["openvino int8"].text
    assert found["meter"].text.startswith("no meter: a Raspberry Pi 4 has no current sensor")
    assert found["C library"].text == "glibc 2.36, libstdc++ up to GLIBCXX_3.4.30"
    assert found["clocks"].verdict == "green" and "1800 MHz" in found["clocks"].text


def test_the_jetson_names_its_jetpack_and_why_it_is_held_back(tmp_path):
    found = lines(doctor.diagnose("orin", *look("orin-nano", tmp_path)))
    assert "L4T 36.4.3 (JetPack 6)" in found["system"].text
    assert "onnxruntime 1.31.1 needs Python >=3.11" in found["onnxruntime"].text


def test_little_memory_and_a_full_disk(tmp_path):
    found = lines(doctor.diagnose("zero", *look("zero2w", tmp_path, disk_free_bytes=10_000_000)))
    assert found["memory"].verdict == "yellow" and "tflite" in found["memory"].fix
    assert found["disk"].verdict == "red" and "gc" in found["disk"].fix


@pytest.mark.parametrize(
    ("access", "verdict", "says"),
    [("denied", "yellow", "may not set"), ("read-only", "yellow", "read-only"), ("absent", "yellow", "no cpufreq")],
)
def test_clocks_that_can_not_be_set(tmp_path, access, verdict, says):
    found = lines(doctor.diagnose("x", *look("pi5", tmp_path, clocks=Clocks(access, "ondemand"))))
    assert found["clocks"].verdict == verdict and says in found["clocks"].text


def test_a_meter_that_is_there(tmp_path):
    meters = [MeterFound("hwmon", False, "none"), MeterFound("ina3221", True, "VDD_IN, board")]
    found = lines(doctor.diagnose("x", *look("orin-nano", tmp_path, meters=meters)))
    assert found["meter"] == doctor.Check("meter", "green", "ina3221 (VDD_IN, board)")


def test_a_meter_that_may_not_be_read(tmp_path):
    meters = [MeterFound("null", False, "no meter"), MeterFound("rapl", False, "permission denied: rapl", blocked=True)]
    found = lines(doctor.diagnose("x", *look("x86-mini", tmp_path, meters=meters)))
    assert found["meter"].text.startswith("permission denied: rapl") and "ansible" in found["meter"].fix


def test_an_installed_runtime_that_dies_is_red_and_an_older_wheel_is_offered(tmp_path):
    text = "onnxruntime 1.31.1 was killed by SIGILL during import on Cortex-A72: ..."
    died = Trial("onnxruntime", "onnxruntime", "1.31.1", "cp311", False, "SIGILL", text, "pin an older wheel")
    found = doctor.diagnose("rpi4", *look("pi4", tmp_path, trials=[died]))
    line = lines(found)["onnxruntime"]
    assert line.verdict == "red" and "SIGILL" in line.text and "Cortex-A72" in line.text
    assert wheel(found, "onnxruntime") == "onnxruntime 1.31.0" and "1.31.1 crashed on this board" in line.text
    assert "edgepipe provision" in line.fix


def test_an_installed_runtime_that_imports_is_green(tmp_path):
    works = Trial("tflite", "ai-edge-litert", "2.3.0", "cp311-cp311-manylinux_2_27_aarch64", True)
    found = doctor.diagnose("rpi4", *look("pi4", tmp_path, trials=[works]))
    assert lines(found)["tflite"].verdict == "green" and "is installed and imports" in lines(found)["tflite"].text


def test_a_better_python_on_the_board_is_named(tmp_path):
    board, found = look("zero2w", tmp_path)
    board = dataclasses.replace(board, python="3.13.5")
    older = Interpreter("/opt/python3.11/bin/python3", "3.11.2", "", "1.26.0")
    odd = Interpreter("/usr/bin/python3.6", "3.6.9", "")
    found = doctor.diagnose("zero", board, dataclasses.replace(found, interpreters=[older, odd]))
    line = lines(found)["other Python"]
    assert "tflite-runtime 2.14.0" in line.text and 'python = "/opt/python3.11/bin/python3"' in line.fix
    assert not found.usable


def test_musl_and_free_threading_are_red(tmp_path):
    board, found = look("pi4", tmp_path)
    musl = doctor.diagnose("x", dataclasses.replace(board, libc="musl 1.2"), found)
    assert lines(musl)["C library"].verdict == "red" and not musl.usable
    own = Interpreter("/usr/bin/python3.13t", "3.13.5", "cpython-313t-aarch64-linux-gnu", own=True)
    free = doctor.diagnose("x", board, dataclasses.replace(found, interpreters=[own]))
    assert lines(free)["python"].verdict == "red"
    nothing = doctor.diagnose("x", dataclasses.replace(board, libc="", isa=[], ram_bytes=None), found)
    assert not nothing.usable and lines(nothing)["cpu"].verdict == "yellow"
    assert lines(nothing)["memory"].verdict == "yellow"


def test_no_libstdcxx_and_emulation_are_said(tmp_path):
    board, found = look("pi5", tmp_path, libstdcxx=0)
    found = lines(doctor.diagnose("x", dataclasses.replace(board, emulated="qemu-user -cpu cortex-a72"), found))
    assert found["C library"].fix == "apt-get install libstdc++6" and "mean nothing" in found["emulated"].text


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`edgepipe doctor` against a board that is not there: (exit code, stdout, stderr)."""
    from edgepipe import cli

    def run(board, found, *arguments):
        client = types.SimpleNamespace(
            target=types.SimpleNamespace(name="rpi4"), hello=lambda: types.SimpleNamespace(board=board)
        )

        def answer(on_progress):
            if isinstance(found, Exception):
                raise found
            return found

        client.doctor = answer
        monkeypatch.setattr(board_module, "connect", lambda *_: contextlib.nullcontext(client))
        monkeypatch.setattr("sys.argv", ["edgepipe", "doctor", "--target", "rpi4", "--host", "pi@pi", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_document_is_one_and_whole(command, tmp_path):
    code, out, err = command(*look("pi4", tmp_path), "--json", "--quiet")
    document = json.loads(out)
    assert code == 0 and not err and document["schema"] == "edgepipe.doctor/1" and document["usable"] is True
    assert document["runtimes"][0]["wheel"] == {
        "name": "onnxruntime", "version": "1.31.1", "tag": "cp311-cp311-manylinux_2_28_aarch64",
    }  # fmt: skip
    assert {check["verdict"] for check in document["checks"]} <= {"green", "yellow", "red"}
    assert from_dict(Health, document["health"]).clocks.access == "write"


def test_a_board_that_can_run_nothing_ends_with_4(command, tmp_path):
    board, found = look("zero2w", tmp_path)
    code, out, err = command(dataclasses.replace(board, python="3.13.5"), found, "--json")
    assert code == 4 and json.loads(out)["usable"] is False
    assert "error: no runtime can run on this board" in err and "fix:" in err


def test_the_table_has_a_row_for_each_line_and_no_control_characters(command, tmp_path):
    board, found = look("pi5", tmp_path)
    code, out, _ = command(dataclasses.replace(board, os="[red]evil[/red] Linux"), found)
    assert code == 0 and "\x1b" not in out and "[red]evil[/red] Linux" in out
    assert all(word in out for word in ("onnxruntime int8", "libstdc++", "green", "yellow", "edgepipe provision"))


def test_a_board_in_use_is_busy(command, tmp_path):
    board, _ = look("pi4", tmp_path)
    code, _, err = command(board, BusyError("the board is in use by you@there", "rpi4", "wait"))
    assert code == 7 and "in use by you@there" in err
