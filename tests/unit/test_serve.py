"""The read-only page: what it shows, whom it answers, and that a real browser draws it."""

import json
import re
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from edgepipe.errors import UsageError
from edgepipe.journal import Journal
from edgepipe.serve.server import Server
from edgepipe.serve.state import State
from tests import fleet_kit as kit
from tests.browser import CHROMIUM


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {"b00002": "down"})


@pytest.fixture
def serve():
    """Starts servers, and ends them."""
    servers = []

    def start(token=""):
        state = State()
        state.refresh()
        server = Server("127.0.0.1", 0, state, token)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(server, path, **headers):
    request = urllib.request.Request(server.url + path.lstrip("/"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_boards_trials_and_metrics_are_those_of_the_journal(serve):
    kit.run(kit.request(kit.members(4), recipes=("none", "fp16")))
    server = serve()
    state = json.loads(get(server, "/api/state")[1])
    assert (state["runs"][0]["done"], state["runs"][0]["trials"]) == (6, 8)
    boards = {each["name"]: each for each in state["boards"]}
    assert (boards["b00002"]["state"], boards["b00002"]["reason"]) == ("given up", "connection refused")
    assert sum(each["done"] for each in boards.values()) == 6
    assert {each["recipe"] for each in state["tradeoffs"]} == {"none", "fp16"}
    history = json.loads(get(server, f"/api/history?board=b00001&model={kit.MODEL}")[1])
    assert sorted((each["recipe"], len(each["points"])) for each in history) == [("fp16", 1), ("none", 1)]
    metrics = get(server, "/metrics")[1]
    assert re.search(r'^edgepipe_run_trials\{run="[^"]+",status="unreachable"\} 2$', metrics, re.M)
    assert len(re.findall(r"^edgepipe_latency_p50_seconds\{", metrics, re.M)) == 6


def test_an_empty_journal_is_a_page_without_boards(serve):
    server = serve()
    assert json.loads(get(server, "/api/state")[1])["boards"] == []
    assert get(server, "/metrics")[1].startswith("# HELP")
    assert get(server, "/api/nothing")[0] == 404


def test_what_is_measured_meanwhile_comes_as_an_event(serve):
    server = serve()
    with urllib.request.urlopen(server.url + "events", timeout=20) as stream:
        kit.run(kit.request(kit.members(2)))
        seen = {}
        while sum(each["done"] for each in seen.values()) < 2:
            line = stream.readline().decode()
            if line.startswith("data: ") and (news := json.loads(line[6:])):
                seen |= {each["name"]: each for each in news["boards"]}
    assert set(seen) == {"b00000", "b00001"}


def test_a_page_elsewhere_can_not_read_it_by_rebinding_its_name(serve):
    server = serve()
    assert get(server, "/", Host="evil.example")[0] == 421
    assert get(server, "/api/state", Host=f"localhost:{server.server_address[1]}")[0] == 200


def test_without_its_token_nothing_is_told(serve):
    server = serve(token="canary")
    for path in ("/", "/api/state", "/metrics", "/events"):
        status, text, _ = get(server, path)
        assert (status, "canary" in text) == (401, False)
    assert get(server, "/api/state?token=wrong")[0] == 401
    assert get(server, "/metrics", Authorization="Bearer canary")[0] == 200
    status, _, headers = get(server, "/?token=canary")
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert get(server, "/api/state", Cookie=cookie.split(";")[0])[0] == 200


def test_an_address_open_to_others_needs_a_token():
    with pytest.raises(UsageError, match="no token"):
        Server("0.0.0.0", 0, State())


def test_a_taken_port_is_told(serve):
    server = serve()
    with pytest.raises(UsageError, match="can't listen"):
        Server("127.0.0.1", server.server_address[1], State())


def test_it_only_reads(serve):
    server = serve()
    request = urllib.request.Request(server.url, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 501
    assert not Journal().path.exists()


def test_another_file_in_place_of_the_journal_is_read_anew(tmp_path):
    kit.run(kit.request(kit.members(3)))
    state = State()
    state.refresh()
    assert len(state.boards()) == 3
    Journal().path.unlink()
    kit.run(kit.request(kit.members(1)))
    state.refresh()
    assert [each["name"] for each in state.boards()] == ["b00000"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_real_browser_draws_it_and_runs_nothing_that_a_board_has_said(serve, tmp_path, monkeypatch):
    evil = "<img src=x onerror=document.title='owned'>"
    monkeypatch.setitem(kit.ILL, "b00002", "lie")
    kit.run(kit.request(kit.members(12)))
    server = serve()
    record = next(each for each in Journal().records("report") if each.value["board"]["target"] == "b00000")
    value = {**record.value, "measurement": {**record.value["measurement"], "status": "failed", "reason": evil}}
    Journal().append("report", value, record.id)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,2400", "--virtual-time-budget=3000", "--dump-dom", server.url + "?still",
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout
    assert len(re.findall(r"<i data-name=", page)) == 12
    assert "11 of 12 trials on 12 boards" in page
    assert "<title>edgepipe fleet</title>" in page
    assert "&lt;img src=x" in page
    assert "<img" not in page
