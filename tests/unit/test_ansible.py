"""The playbook, run on this machine below a throw-away prefix: what it writes, twice the same, its check mode."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.agent import service
from edgepipe.agent.store import Store

ROOT = Path(__file__).parents[2]
PLAYBOOK = shutil.which(
    "ansible-playbook", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
pytestmark = [
    pytest.mark.skipif(PLAYBOOK is None, reason="ansible-core is not installed (it is in the extra dev)"),
    pytest.mark.slow,
]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJgTn6UAIXt4gQ2PYZxhcvv+QFlC1EvJTFvCVkfCR6n3"
EDGEPIPE = [sys.executable, "-c", "from edgepipe.cli import main; main()"]


@pytest.fixture
def play(tmp_path):
    """Run the playbook: returns the recap's (changed, failed) and all it said."""
    (tmp_path / "key.pub").write_text(f"{KEY} me@host\n")
    (tmp_path / "inventory.yml").write_text(
        "all: {children: {loopback: {hosts: {here: {ansible_connection: local}}}}}\n"
    )
    settings = {
        "edgepipe_become": False,
        "edgepipe_prefix": str(tmp_path / "board"),
        "edgepipe_user": getpass.getuser(),
        "edgepipe_owner": getpass.getuser(),
        "edgepipe_home": str(tmp_path / "board" / "home"),
        "edgepipe_public_key": str(tmp_path / "key.pub"),
        "edgepipe_python": sys.executable,
        "edgepipe_runtimes_by": "none",
        "edgepipe_sudo_commands": ["/bin/true --now", "/usr/sbin/nvpmodel-that-is-not-here -q"],
        "ansible_python_interpreter": sys.executable,
    }

    def run(*flags, failed=0, **more):
        argv = [PLAYBOOK, "-i", str(tmp_path / "inventory.yml"), str(ROOT / "ansible/board.yml")]
        argv += ["--skip-tags", "account", "-e", json.dumps({**settings, **more}), *flags]
        environment = {
            **os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCAL_TEMP": str(tmp_path / "a"), "LC_ALL": "C.UTF-8",
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "b"), "PYTHONPATH": str(ROOT),
            "EDGEPIPE_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        environment.pop("ANSIBLE_CONFIG", None)
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path, check=False
        )
        said = done.stdout + done.stderr
        recap = re.search(r"changed=(\d+) +unreachable=0 +failed=(\d+)", said)
        assert recap and int(recap.group(2)) == failed, said[-3000:]
        return int(recap.group(1)), said

    run.board = tmp_path / "board"
    return run


def test_it_is_a_playbook_for_the_example_inventory():
    argv = [
        PLAYBOOK,
        "--syntax-check",
        "-i",
        str(ROOT / "ansible/inventory.example.yml"),
        str(ROOT / "ansible/board.yml"),
    ]
    assert subprocess.run(argv, capture_output=True, check=True, timeout=60).returncode == 0


def test_what_it_writes_and_that_the_second_run_changes_nothing(play):
    changed, _ = play()
    assert changed > 0
    library = play.board / "usr/local/lib/edgepipe"
    line = (play.board / "home/.ssh/authorized_keys").read_text()
    assert line == (
        f'restrict,command="{sys.executable} -I -S {library}/gate.py {play.board}/home/.edgepipe" {KEY} me@host\n'
    )
    assert (library / "start.py").read_bytes() == (ROOT / "edgepipe/link/start.txt").read_bytes()
    rules = (play.board / "etc/udev/rules.d/70-edgepipe.rules").read_text()
    assert set(re.findall(r"cpufreq/(\w+)", rules)) == {"scaling_governor", "scaling_min_freq", "scaling_max_freq"}
    assert "powercap" not in rules
    sudoers = (play.board / "etc/sudoers.d/edgepipe").read_text().splitlines()
    assert sudoers[1:] == [f"{getpass.getuser()} ALL=(root) NOPASSWD: /bin/true --now"]
    assert (play.board / "etc/sudoers.d/edgepipe").stat().st_mode & 0o777 == 0o440
    assert play()[0] == 0
    # An older line of the same key is replaced, and other keys stay.
    keys = play.board / "home/.ssh/authorized_keys"
    keys.write_text(f"ssh-ed25519 BBBB other\nrestrict {KEY} me@host\n")
    assert play()[0] == 1
    assert keys.read_text().splitlines()[0] == "ssh-ed25519 BBBB other" and keys.read_text().count(KEY) == 1
    play(edgepipe_sudo_commands=["/not/here -q"], edgepipe_rapl=True, edgepipe_service={"unit": "app.service"})
    assert service.read(Store(str(play.board / "home/.edgepipe"))).unit == "app.service"
    assert not (play.board / "etc/sudoers.d/edgepipe").exists()
    assert "energy_uj" in (play.board / "etc/udev/rules.d/70-edgepipe.rules").read_text()


def test_check_mode_changes_nothing(play):
    changed, _ = play("--check")
    assert changed > 0 and not play.board.exists()


def test_bad_settings_stop_it(play):
    _, said = play(failed=1, edgepipe_agents=["zzz"])
    assert "sha256 in hex" in said
    _, said = play(failed=1, edgepipe_root='/x" ssh-rsa')
    assert "paths may hold" in said
    _, said = play(failed=1, edgepipe_python="/bin/false")
    assert "not Python 3.8 or later" in said


def test_runtimes_are_left_to_edgepipe_and_its_check_mode(play, tmp_path):
    stand_in = tmp_path / "edgepipe"
    answer = {"runtimes": [{"runtime": "onnxruntime", "state": "would install"}]}
    stand_in.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\necho '{json.dumps(answer)}'\n")
    stand_in.chmod(0o755)
    more = {"edgepipe_runtimes_by": "push", "edgepipe_command": [str(stand_in)], "edgepipe_runtimes": ["onnxruntime"]}
    changed, _ = play(**more)
    assert changed > 0
    play("--check", **more)
    asked = (tmp_path / "asked").read_text().splitlines()
    where = f"--host {getpass.getuser()}@here"
    assert asked[0] == f"provision --target loopback {where} --runtime onnxruntime --json --quiet"
    assert asked[1] == asked[0] + " --check"


def test_venvs_are_made_of_what_the_doctor_says(play, tmp_path):
    """The real doctor on this machine, and a virtual environment whose pip is a stand-in."""
    more = {"edgepipe_runtimes_by": "venv", "edgepipe_command": EDGEPIPE, "edgepipe_target": "local"}
    more |= {"edgepipe_address": "", "edgepipe_runtimes": ["onnxruntime"]}
    pip = play.board / "home/.edgepipe/venvs/onnxruntime/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/pip\necho Successfully installed\n')
    pip.chmod(0o755)
    play(**more)
    assert re.fullmatch(r"install --only-binary=:all: onnxruntime==1\.\d+\.\d+\n", (tmp_path / "pip").read_text())
