import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe import board, golden, inventory
from edgepipe.errors import GateError
from edgepipe.fleet import plan, rollout
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Cell
from edgepipe.fleet.rollout import waves
from edgepipe.link.loopback import Sshd
from edgepipe.progress import Silent
from scripts import fleet_demo
from tests import fleet_kit as kit

ROOT = Path(__file__).parents[2]


NO_SSHD = not shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")


@pytest.mark.slow
@pytest.mark.skipif(NO_SSHD, reason="no sshd here")
def test_the_demo_of_fleets_in_small_on_real_ssh_servers(tmp_path):
    """Five boards: one is gone, one hung, one shows the key of another; two are well."""
    settings = {"BOARDS": "5", "SICK": "3", "MODELS": "fashion-mbv2", "RECIPES": "none", "FORMATS": "onnx"}
    environment = {**os.environ, **settings, "OUT": str(tmp_path / "out")}
    command = [sys.executable, "scripts/fleet_demo.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 5 boards did all, 3 sick ones are reported; 2 trials kept" in done.stdout
    for reason in ("connection refused", "HAS CHANGED", "does not speak SSH"):
        assert reason in done.stderr
    assert "board-02" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def boards(tmp_path, monkeypatch):
    """Two boards behind SSH servers of their own, with a user who knows their keys."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Sshd(tmp_path / name)) for name in ("one", "two")}
        path = fleet_demo.inventory_of(servers, tmp_path)
        yield [plan.member(host) for host in inventory.load(path).select("demo")]


def rolled(members, recipe, text, **gates):
    wanted = rollout.Request(
        members, Cell("fashion-resnet8", recipe, "onnx"), waves.counts(text, 2), waves.Gates(**gates), plan=kit.SHORT,
        evaluation="shipped",
    )  # fmt: skip
    outcome = rollout.begin(wanted, Silent(), Limits(2, 1, kit.Patience(backoff=0.1)))
    return outcome, {found["board"]: found for found in outcome.document["boards"]}


def links(member):
    with board.connect(member.target, "test", Silent()) as client:
        return client.hello().current, client.hello().previous


@pytest.mark.slow
@pytest.mark.skipif(NO_SSHD, reason="no sshd here")
def test_a_roll_out_over_ssh_is_held_by_golden_samples_goes_through_and_back(boards, monkeypatch):
    with monkeypatch.context() as patch:
        real = golden.make

        def wrong(artifact, dataset):
            made = real(artifact, dataset)
            return golden.Golden(dataclasses.replace(made.test, atol=0.0, outputs=made.test.inputs), made.blobs)

        patch.setattr(golden, "make", wrong)
        outcome, found = rolled(boards, "none", "1,all")
    assert isinstance(outcome.error, GateError)
    assert [at["state"] for at in found.values()] == [waves.RETURNED, "not asked"]
    assert links(boards[0]) == links(boards[1]) == (None, None)

    outcome, old = rolled(boards, "none", "all")
    assert outcome.error is None
    outcome, new = rolled(boards, "fp16", "1,all", max_slowdown=20.0)
    assert outcome.error is None
    for member in boards:
        assert links(member) == (new[member.name]["release"], old[member.name]["release"])
        assert new[member.name]["latency"]["low"] > 0
    limits = Limits(2, 1)
    outcome = rollout.abort(outcome.document["rollout"], "all", Silent(), limits)
    assert outcome.document["counts"] == {waves.RETURNED: 2}
    assert [links(member)[0] for member in boards] == [old[member.name]["release"] for member in boards]
