"""The board's own service: restarted with a release, and the release before is back when it is not well.

systemctl and sudo are stand-ins that write down what they were asked; all else is real.
"""

import http.server
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from edgepipe.agent import service
from edgepipe.agent.store import Store
from edgepipe.errors import UsageError
from tests.guarantees.figure import report

SYSTEMCTL = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in *is-active*) test ! -e {folder}/dead;; *restart*) test ! -e {folder}/stuck;; esac
"""
SUDO = """#!/bin/sh
echo "sudo $@" >> {folder}/asked
shift
exec "$@"
"""


@pytest.fixture
def systemd(tmp_path):
    """A folder with a systemctl and a sudo; files named dead or stuck in it make the unit misbehave."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    for name, text in {"systemctl": SYSTEMCTL, "sudo": SUDO}.items():
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    return folder


def asked(folder):
    path = folder / "asked"
    lines = [line.replace(str(folder) + "/", "") for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.fixture
def board(start, systemd, tmp_path):
    """An agent whose board has a service; ``serve`` writes the file that names it."""
    agent = start(env={**os.environ, "PATH": f"{systemd}:{os.environ['PATH']}"})

    def serve(**more):
        agent.root.mkdir(exist_ok=True)
        (agent.root / "service.json").write_text(json.dumps({"unit": "app.service", "deadline_seconds": 1, **more}))

    agent.serve = serve
    return agent


def health(tmp_path, root):
    """A health command that is content with releases whose name starts with good."""
    path = tmp_path / "health"
    code = f"import json, sys; sys.exit(not json.load(open('{root}/current/manifest.json'))['name'].startswith('good'))"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return [str(path)]


def release(agent, tools, name):
    manifest, content = tools.null(name=name)
    agent.push(content)
    return manifest


def test_it_is_restarted_once_with_a_new_release(board, tools, systemd, tmp_path):
    board.serve(command=health(tmp_path, board.root))
    good = release(board, tools, "good")
    done = board.good("activate", manifest=good)
    assert done["service"]["unit"] == "app.service" and done["service"]["seconds"] > 0
    assert asked(systemd) == ["--user restart app.service"] + ["--user is-active app.service"] * 2
    assert board.good("status")["activations"][good.id]["service"] == "well"
    assert board.good("activate", manifest=good)["service"] is None and asked(systemd) == []


@pytest.mark.guarantee
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fault", ["ill", "dead", "stuck"])
def test_the_release_before_is_back_when_it_is_not_well(board, tools, systemd, tmp_path, fault, first):
    before = None
    if not first:
        for name in ("good-one", "good-two"):
            before = release(board, tools, name)
            board.good("activate", manifest=before)
    links = [board.good("status")[key] for key in ("current", "previous")]
    board.serve(command=health(tmp_path, board.root))
    if fault != "ill":
        (systemd / fault).touch()
    bad = release(board, tools, "bad" if fault == "ill" else "good-at-heart")
    asked(systemd)
    for _ in range(2):
        error = board.bad("activate", manifest=bad)
        assert error["kind"] == "BoardError" and "app.service" in error["what"]
        back = "is active again" if before else "no release is active, as before"
        assert back in error["what"]
        status = board.good("status")
        assert [status["current"], status["previous"]] == links
        assert bad.id not in [held["id"] for held in status["releases"]]
        restarts = [line for line in asked(systemd) if "restart" in line]
        assert len(restarts) == 1 + (before is not None), "with the new one, then with the one before"
    report(6, "a service that is not well: the release before is back", ok=True)


def test_after_a_cut_before_it_was_known_to_be_well_it_is_done_again(board, tools, systemd, tmp_path, start):
    board.serve(command=health(tmp_path, board.root))
    good, bad = release(board, tools, "good"), release(board, tools, "bad")
    board.good("activate", manifest=good)
    ledger = json.loads((board.root / "ledger.json").read_text())
    ledger["activations"] = {bad.id: {"by": "me", "at": 1.0, "signer": "", "service": "pending"}}
    board.good("bench", manifest=bad, plan=tools.QUICK, options={"threads": 1})
    board.kill()
    (board.root / "ledger.json").write_text(json.dumps(ledger))
    for link, name in (("previous", good.id), ("current", bad.id)):
        (board.root / link).unlink(missing_ok=True)
        (board.root / link).symlink_to(Path("releases") / name)
    again = start(env={**os.environ, "PATH": f"{systemd}:{os.environ['PATH']}"})
    assert f"release {good.id} is active again" in again.bad("activate", manifest=bad)["what"]
    assert again.good("status")["current"] == good.id and again.good("status")["previous"] is None


def test_rollback_restarts_it_and_says_when_it_is_not_well(board, tools, systemd, tmp_path):
    one, two = release(board, tools, "good-one"), release(board, tools, "good-two")
    for each in (one, two):
        board.good("activate", manifest=each)
    board.serve(scope="system")
    assert board.good("rollback")["service"]["unit"] == "app.service"
    assert asked(systemd)[:2] == ["sudo -n systemctl restart app.service", "restart app.service"]
    (systemd / "dead").touch()
    error = board.bad("rollback")
    assert f"release {two.id} is active again, but app.service was not well within 1 s" in error["what"]
    assert board.good("status")["current"] == two.id


@pytest.mark.parametrize("status", [200, 204, 301, 500])
def test_health_by_http(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = service._http(f"http://127.0.0.1:{server.server_port}/health?a=1", 5.0)
        server.shutdown()
    assert said == ("" if status < 300 else f"its health page answers {status}")
    assert "does not answer" in service._http("http://127.0.0.1:9/", 1.0)


def test_a_health_command_that_hangs_is_ended_with_all_it_started(tmp_path, tools):
    script = tmp_path / "hang"
    script.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o755)
    assert service._run([str(script)], 1.0) == -1
    assert tools.eventually(lambda: not tools.alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize(
    "bad",
    [
        {"unit": "--force"}, {"unit": "a b.service"}, {"unit": "app"}, {"unit": "../x.service"}, {"scope": "root"},
        {"deadline_seconds": 0}, {"deadline_seconds": 1e9}, {"command": ["relative"]}, {"command": "sh"}, {"extra": 1},
        {"http": "http://192.0.2.1/"}, {"http": "https://127.0.0.1/"}, {"http": "file:///etc"}, {"http": "http://[::1"},
        {"http": "http://127.0.0.1:99999/"},
    ],
)  # fmt: skip
def test_a_file_that_is_not_right_stops_everything_and_says_so(tmp_path, bad):
    path = tmp_path / "service.json"
    path.write_text(json.dumps({"unit": "app.service", **bad}))
    path.chmod(0o644)
    with pytest.raises(UsageError):
        service.read(Store(str(tmp_path)))


def test_a_file_that_others_may_write_is_not_obeyed(tmp_path):
    path = tmp_path / "service.json"
    assert service.read(Store(str(tmp_path))) is None
    path.write_text('{"unit": "app.service", "http": "http://localhost:80/x"}')
    path.chmod(0o666)
    with pytest.raises(UsageError, match="others may write"):
        service.read(Store(str(tmp_path)))
    path.chmod(0o644)
    assert service.read(Store(str(tmp_path))).unit == "app.service"
