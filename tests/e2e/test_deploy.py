"""The whole chain, for real: real trained models, real runtimes, a real sshd."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from edgepipe import board, targets
from edgepipe.progress import Silent
from edgepipe.schema import FileRef
from tests.e2e.conftest import Cli

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
FORMATS = ("onnx", "tflite", "openvino")


def check_report(report: dict[str, Any], format_name: str) -> None:
    assert report["schema"] == "edgepipe.report/1"
    artifact, accuracy, measured = report["artifact"], report["accuracy"], report["measurement"]
    assert artifact["format"] == format_name
    content = Path(artifact["path"]).read_bytes()
    assert artifact["sha256"] == hashlib.sha256(content).hexdigest()
    assert artifact["bytes"] >= len(content)
    assert artifact["preprocessing"]["layout"] in {"NCHW", "NHWC"}
    assert accuracy["samples"] >= 1000
    assert accuracy["baseline"] > 0.9
    assert abs(accuracy["baseline"] - accuracy["on_device"]) <= 0.01
    assert report["parity"][-1]["rung"] == "on_device"
    assert measured["status"] in {"ok", "unstable", "throttled"}
    assert measured["samples"] >= 130
    p50, p90 = measured["latency_ms"]["p50"], measured["latency_ms"]["p90"]
    assert 0 < p50["low"] <= p50["value"] <= p50["high"]
    assert p90["value"] >= p50["value"]
    assert measured["load_ms"] > 0
    assert measured["first_ms"] > 0
    assert measured["memory_peak_bytes"] > 10_000_000
    assert measured["timer_overhead_us"] < 20
    assert (measured["power"]["mean_w"] is None) == bool(measured["power"]["reason"])
    assert report["release"]["id"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
def test_three_formats_through_a_real_sshd_cold_then_warm(cli: Cli) -> None:
    cli("provision", "--target", "loopback", timeout=900)
    request = ("deploy", "fashion-resnet8", "--target", "loopback", "--recipe", "int8", "--to", ",".join(FORMATS))
    document = cli.json(*request, "--quiet", "--max-drop", "1%")
    assert document["schema"] == "edgepipe.deploy/1"
    assert [report["artifact"]["format"] for report in document["reports"]] == list(FORMATS)
    for report, name in zip(document["reports"], FORMATS, strict=True):
        check_report(report, name)
        assert report["release"]["bytes_sent"] > 0
        assert [step["name"] for step in report["steps"]] == ["export", "int8"]
        assert report["steps"][1]["bytes"] < report["steps"][0]["bytes"]
    started = time.monotonic()
    again = cli.json("deploy", "fashion-resnet8", "--target", "loopback", "--recipe", "int8", "--to", "openvino")
    (report,) = again["reports"]
    assert report["release"]["bytes_sent"] == 0
    assert report["release"]["changed"] is False
    assert time.monotonic() - started < 120
    status = cli.json("status", "--target", "loopback")
    assert status["current"] == document["reports"][2]["release"]["id"]
    assert status["previous"] == document["reports"][1]["release"]["id"]
    assert cli.json("rollback", "--target", "loopback")["release"]["id"] == status["previous"]
    process = cli.start("deploy", "fashion-resnet8", "--target", "loopback", "--to", "onnx", "--eval", "shipped")
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert nothing_left(cli)
    assert cli.json("status", "--target", "loopback")["current"] == status["previous"]
    listed = cli.json("runs", "list", "--limit", "4")["reports"]
    assert len(listed) == 4
    assert "fashion-resnet8" in cli("runs", "show", listed[0]["id"]).stdout
    cli("report", "--html", "report.html")
    page = (cli.cwd / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.fixture(scope="session")
def deployed(shared: Path) -> Path:
    """The home of a local board that already runs a release: fp32 ONNX."""
    cli = Cli(shared / "deployed", shared)
    cli("deploy", "fashion-resnet8", "--target", "local", "--to", "onnx", "--eval", "shipped", "--quiet")
    return cli.home


@pytest.fixture
def local(cli: Cli, deployed: Path) -> Cli:
    """A copy of that board for this test alone."""
    shutil.copytree(deployed, cli.home, symlinks=True)
    return cli


@pytest.mark.slow
def test_a_deployed_release_bears_golden_samples(local: Cli) -> None:
    root = next(local.home.rglob("current")).parent
    manifest = json.loads((root / "current" / "manifest.json").read_text())
    test = manifest["selftest"]
    assert test["atol"] > 0
    assert all((root / "blobs" / test[part]).is_file() for part in ("inputs", "outputs"))


def active(cli: Cli) -> tuple[str | None, str | None]:
    status = cli.json("status", "--target", "local")
    return status["current"], status["previous"]


@pytest.mark.slow
def test_the_board_folds_what_the_host_folded_into_the_file(local: Cli) -> None:
    flags = ("--fold-preprocessing", "--layout", "nhwc", "--eval", "shipped")
    (report,) = local.json("deploy", "fashion-resnet8", "--target", "local", "--to", "onnx", *flags)["reports"]
    assert report["artifact"]["preprocessing"]["layout"] == "NHWC"
    assert report["artifact"]["preprocessing"]["scale"] == 1.0
    assert abs(report["accuracy"]["on_device"] - report["accuracy"]["baseline"]) <= 0.01


@pytest.mark.slow
def test_a_gate_that_fails_activates_nothing(local: Cli) -> None:
    before = active(local)
    document = local.json(
        "deploy", "fashion-mbv2", "--target", "local", "--eval", "shipped", "--max-latency", "p50=0.000001ms", code=6
    )
    (report,) = document["reports"]
    assert report["release"] is None
    assert report["measurement"]["latency_ms"]["p50"]["value"] > 0
    assert active(local) == before
    # What was measured is kept although nothing was activated.
    assert local.json("runs", "list")["reports"][0]["id"] == report["id"]


@pytest.mark.slow
def test_an_accuracy_gate_is_held_before_anything_is_measured(local: Cli, tmp_path: Path) -> None:
    """Calibrated on black images alone, int8 clips every activation: a real, silent loss that the gate must catch."""
    import numpy as np

    from edgepipe import paths

    shipped = next(folder for folder in paths.search("models") if (folder / "fashion-resnet8").is_dir())
    folder = local.cwd / "models" / "dark"
    shutil.copytree(shipped / "fashion-resnet8", folder)
    card = (folder / "model.toml").read_text().replace('name = "fashion-resnet8"', 'name = "dark"')
    data = shipped / "_fashion_mnist"
    card = card.replace("../_fashion_mnist/calibration.npz", "dark.npz").replace("../_fashion_mnist", str(data))
    (folder / "model.toml").write_text(card)
    np.savez(folder / "dark.npz", inputs=np.zeros((32, 28, 28, 1), np.uint8), labels=np.zeros(32, np.int64))
    before = active(local)
    done = local(
        "deploy", "dark", "--target", "local", "--recipe", "int8", "--eval", "shipped", "--max-drop", "1%", code=6
    )
    assert "top1 fell by" in done.stderr
    assert "nothing was activated" in done.stderr
    assert active(local) == before


def started_by(cli: Cli) -> list[int]:
    """Processes that carry this home in their environment: everything a command started."""
    marker = f"EDGEPIPE_HOME={cli.home}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes() and (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def nothing_left(cli: Cli) -> bool:
    """Whether all processes of a command are gone within ten seconds."""
    deadline = time.monotonic() + 10
    while (left := started_by(cli)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1.5, 4.0, 8.0, 14.0])
def test_ctrl_c_at_any_time_leaves_the_old_release_and_no_process(local: Cli, delay: float) -> None:
    before = active(local)
    process = local.start("deploy", "fashion-resnet8", "--target", "local", "--recipe", "int8", "--eval", "shipped")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert active(local) == before
    assert nothing_left(local)
    assert local.json("status", "--target", "local")["lock"] is None


@pytest.mark.slow
def test_an_agent_killed_while_it_measures_is_one_clear_error(local: Cli) -> None:
    before = active(local)
    process = local.start("deploy", "fashion-mbv2", "--target", "local", "--eval", "shipped")
    assert process.stderr
    said = []
    while "on the board" not in (line := process.stderr.readline()):
        said.append(line)
        assert line, said
    time.sleep(2)  # into the measurement
    agents = [pid for pid in started_by(local) if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    assert len(agents) == 1
    os.kill(agents[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode in {3, 4}, err
    assert [line.split(":")[0].strip() for line in err.splitlines()[-3:]] == ["error", "where", "fix"]
    assert active(local) == before
    assert nothing_left(local)


def install_runtime(cli: Cli, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Put a runtime of our own in the place of ONNX Runtime, by the verb that provisioning uses."""
    monkeypatch.setenv("EDGEPIPE_HOME", str(cli.home))
    package, metadata = source.encode(), b"Metadata-Version: 2.1\nName: onnxruntime\nVersion: 9.9\n"
    contents = {"onnxruntime/__init__.py": package, "onnxruntime-9.9.dist-info/METADATA": metadata}
    files = [FileRef(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()]
    with board.connect(targets.load("local"), "tester@here", Silent()) as client:
        client.push([(contents[file.name], file) for file in files])
        client.site("onnxruntime", files, "a runtime that does not run")


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["SIGILL", "SIGSEGV"])
def test_a_runtime_that_crashes_is_exit_4_and_the_old_release_stays(
    local: Cli, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    before = active(local)
    install_runtime(local, monkeypatch, f"import os, signal\nos.kill(os.getpid(), signal.{crash})\n")
    done = local("deploy", "fashion-mbv2", "--target", "local", "--eval", "shipped", code=4)
    assert crash in done.stderr
    assert "onnxruntime 9.9" in done.stderr
    assert active(local) == before


@pytest.mark.slow
def test_a_board_without_the_runtime_says_how_to_get_it(cli: Cli) -> None:
    if SSHD is None:
        pytest.skip("no sshd on this machine")
    done = cli("deploy", "fashion-resnet8", "--target", "loopback", "--to", "onnx", code=4)
    assert "edgepipe provision --target loopback --runtime onnxruntime" in done.stderr


@pytest.mark.slow
def test_bench_measures_a_bare_file_and_activates_nothing(local: Cli) -> None:
    before = active(local)
    local("export", "fashion-mbv2", "--to", "onnx", "--eval", "shipped", "-o", "out", "--quiet")
    (file,) = (local.cwd / "out").rglob("*.onnx")
    document = local.json("bench", str(file), "--target", "local")
    (report,) = document["reports"]
    assert report["measurement"]["latency_ms"]["p50"]["value"] > 0
    assert report["accuracy"] is None
    assert report["release"] is None
    assert active(local) == before
    again = local.json("bench", "current", "--target", "local")
    assert again["reports"][0]["artifact"]["model"] == "fashion-resnet8"


@pytest.mark.slow
def test_verify_knows_a_quantised_file_and_a_wrong_one(cli: Cli) -> None:
    request = ("export", "fashion-mbv2", "--to", "onnx", "--eval", "shipped", "--quiet")
    cli(*request, "--recipe", "int8", "-o", "out")
    file = cli.cwd / "out" / "fashion-mbv2-int8-onnx" / "model.onnx"
    document = cli.json("verify", str(file), "--against", "fashion-mbv2", "--eval", "shipped", "--max-drop", "1%")
    assert [rung["rung"] for rung in document["parity"]] == ["quantized:int8"]
    bare = cli.cwd / "bare.onnx"
    bare.write_bytes(file.read_bytes())
    document = cli.json("verify", str(bare), "--against", "fashion-mbv2", "--eval", "shipped")
    assert document["recipe"] == "unknown"
    assert document["accuracy"]["exported"] > 0.9
    assert (
        "the model broke here"
        in cli("verify", str(bare), "--against", "fashion-resnet8", "--eval", "shipped", code=5).stderr
    )
