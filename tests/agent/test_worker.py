"""Children that crash, hang and shout: each is a typed error, or a right result all the same."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepipe.agent import probe, worker
from edgepipe.agent.jobs import make
from edgepipe.errors import BoardError, DeadlineError
from edgepipe.schema import RunOptions
from tests.guarantees.figure import report

# A package that is found like onnxruntime and does what a test says while it is imported.
FAKE = """
import ctypes, json, os, signal, subprocess, sys, time
__version__ = "1.2.3"
{act}

class GraphOptimizationLevel: ORT_ENABLE_ALL, ORT_DISABLE_ALL = 99, 0
class ExecutionMode: ORT_SEQUENTIAL = 0
class SessionOptions: pass
class Tensor: name = "x"

class InferenceSession:
    def __init__(self, path, options, providers): pass
    def get_inputs(self): return [Tensor]
    def get_outputs(self): return [Tensor]
    def run(self, names, feeds):
        {on_run}
        return [feeds["x"] + 1]
    def end_profiling(self):
        open("p.json", "w").write("[]")
        return "p.json"
"""


@pytest.fixture
def infer(tmp_path, tools):
    """Run one sample through the fake runtime."""
    import numpy as np

    np.savez(tmp_path / "inputs.npz", x=np.arange(4, dtype="f").reshape(1, 4))
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    from edgepipe.schema import TensorSpec

    artifact = tools.artifact("onnx", model, [TensorSpec("x", [-1, 4])], [TensorSpec("x", [-1, 4])])

    def go(act="", on_run="pass", **more):
        site = tmp_path / "site"
        (site / "onnxruntime").mkdir(parents=True)
        (site / "onnxruntime-1.2.3.dist-info").mkdir()
        (site / "onnxruntime" / "__init__.py").write_text(FAKE.format(act=act, on_run=on_run))
        job = make("infer", artifact, "onnxruntime", str(model), RunOptions(), str(tmp_path))
        job.update(inputs=str(tmp_path / "inputs.npz"), outputs=str(tmp_path / "outputs.npz"))
        more.setdefault("deadline", 20)
        done = worker.run(job, site=str(site), **more)
        with np.load(tmp_path / "outputs.npz") as file:
            return done, file["0"].tolist()

    return go


def test_the_fake_works_and_its_site_wins(infer):
    done, outputs = infer()
    assert outputs == [[1.0, 2.0, 3.0, 4.0]] and done["runtime_version"] == "1.2.3" and done["samples"] == 1
    assert done["precision"] == "unknown"


@pytest.mark.guarantee
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("SIGILL", "instructions this CPU does not have"),
        ("SIGSEGV", "crashed"),
        ("SIGBUS", "memory fault"),
        ("SIGABRT", "internal check"),
        ("SIGFPE", "divided by zero"),
        ("SIGKILL", "out of memory"),
        ("SIGTERM", "stopped from outside"),
    ],
)
def test_a_signal_is_named_with_runtime_version_and_cpu(infer, name, cause):
    with pytest.raises(BoardError) as caught:
        infer(f"os.write(2, b'\\x1b[31mlast words'); os.kill(os.getpid(), signal.{name})")
    what = caught.value.what
    assert f"onnxruntime 1.2.3 was killed by {name} during import on {probe.cpu_name()}" in what
    assert cause in what and what.endswith(": last words") and "\x1b" not in what
    assert "model.onnx" in caught.value.where and caught.value.fix
    report(18, f"{name} classified", ok=True)


def test_a_real_segmentation_fault_while_running(infer, tmp_path):
    with pytest.raises(BoardError, match="SIGSEGV during run"):
        infer(on_run="ctypes.string_at(0)")
    assert not list(tmp_path.glob("core*"))


def test_an_exit_without_a_result(infer):
    with pytest.raises(BoardError, match=r"ended during import without a result \(exit code 3\): bye"):
        infer("os.write(1, b'bye'); os._exit(3)")


def test_an_exception_is_shortened_and_cleaned(infer):
    with pytest.raises(BoardError) as caught:
        infer("raise ValueError('\\x1b]0;title\\x07\\x1b[1mbad\\n' + 'x' * 100_000)")
    what = caught.value.what
    assert "ValueError: bad xxx" in what and len(what) <= 400 and what.isprintable()


def test_a_missing_package_says_how_to_install_it(infer):
    with pytest.raises(BoardError) as caught:
        infer("raise ImportError('no module')")
    assert "provision" in caught.value.fix


@pytest.mark.guarantee
@pytest.mark.parametrize(
    "act", ["time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)", "exec('while True: pass')"]
)
def test_a_hang_ends_at_the_deadline(infer, act):
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"onnxruntime 1\.2\.3 was still at import after 1 s"):
        infer(act, deadline=1)
    late = time.monotonic() - began - 1
    report(10, f"a hung child: deadline + {late:.1f} s", ok=late < 2)


def test_what_a_child_started_ends_with_it(infer, tmp_path, tools):
    act = "open('pid', 'w').write(str(subprocess.Popen(['sleep', '1000']).pid))"
    infer(act)
    pid = int((tmp_path / "pid").read_text())
    assert tools.eventually(lambda: not tools.alive(pid), 2)


def test_ten_megabytes_of_noise_on_both_streams_are_drained(infer):
    noise = "[os.write(each, b'noise ' * 10_000) for _ in range(90) for each in (1, 2)]"
    done, outputs = infer(noise, on_run="print('{\"ok\": false}', flush=True); os.write(1, b'\\xff' * 100_000)")
    assert outputs == [[1.0, 2.0, 3.0, 4.0]] and done["samples"] == 1


@pytest.mark.slow
def test_a_gigabyte_of_stderr_is_drained_and_only_its_end_is_kept(infer):
    with pytest.raises(BoardError) as caught:
        infer("[os.write(2, b'noise ' * 170_000) for _ in range(1000)]; raise RuntimeError('the end')", deadline=120)
    assert "the end" in caught.value.what and len(caught.value.what) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20, "in kB"


def test_somebody_else_may_stop_it(infer):
    began = time.monotonic()
    with pytest.raises(worker.CancelledError):
        infer("time.sleep(1000)", cancelled=lambda: time.monotonic() - began > 0.5)
    assert time.monotonic() - began < 2


def test_progress_names_the_phase(infer):
    seen = []
    infer("time.sleep(1.3)", on_progress=lambda phase, seconds: seen.append((phase, seconds)))
    imports = [seconds for phase, seconds in seen if phase == "import"]
    assert len(imports) >= 2 and imports == sorted(imports)


def test_the_child_is_the_first_to_go_when_memory_runs_out(infer, tmp_path):
    infer("open('score', 'w').write(open('/proc/self/oom_score_adj').read())")
    assert int((tmp_path / "score").read_text()) == 500


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path, tools):
    """kill -9 of the parent: nobody is left who could end the child."""
    content = b'{"outputs": [[1]], "sleep_s": 1000}'
    (tmp_path / "model.json").write_bytes(content)
    manifest, _ = tools.null()
    script = (
        "import json, sys\nfrom edgepipe.agent import worker\nworker.run(json.loads(sys.stdin.read()), deadline=60)\n"
    )
    from edgepipe.codec import to_dict
    from edgepipe.schema import Plan

    job = make("bench", manifest.artifact, "null", str(tmp_path / "model.json"), RunOptions(), str(tmp_path))
    job.update(plan=to_dict(Plan()), stop_at=1 << 62, most=10, describe=True, inputs=None)
    package = str(Path(worker.__file__).parent.parent.parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=package)
    )
    import json

    parent.stdin.write(json.dumps(job).encode())
    parent.stdin.close()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    assert tools.eventually(lambda: children.read_text().split(), 10)
    child = int(children.read_text().split()[0])
    time.sleep(0.5)
    assert tools.alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert tools.eventually(lambda: not tools.alive(child), 2)
