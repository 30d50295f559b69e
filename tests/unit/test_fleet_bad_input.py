"""What a fleet is given that is wrong, one by one, and what it says. More of it: test_inventory, test_fleet."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from edgepipe import cli, fleet
from edgepipe.errors import HostKeyError
from edgepipe.fleet import plan, work
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Member
from edgepipe.inventory import load
from edgepipe.journal import Journal
from edgepipe.link import null
from edgepipe.targets import Target
from tests import fleet_kit as kit

ROOT = Path(__file__).parents[2]
FLEET = """\
import sys
from edgepipe import fleet
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Member
from edgepipe.targets import Target
from tests import fleet_kit as kit
request = kit.request([Member(Target("b0", link="local", root=sys.argv[1]))], plan=kit.short(1.0))
with kit._no_data():
    found = fleet.run(request, kit.Silent(), lambda _: None, Limits(2, 2, kit.Patience(backoff=0.2, wait=200.0)))
print(found.document["done"], *{report.measurement.status for report in found.document["reports"]})
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {})


def by_name(outcome):
    return {board["name"]: board for board in outcome.document["boards"]}


@pytest.mark.parametrize(
    ("text", "limit", "what"),
    [
        ("lab: {hosts: {a: , b: }}", "labb", "did you mean lab"),
        ("lab: {hosts: {a: , b: ", "lab", "inventory.yml"),
        ("lab: {hosts: {a: {ansible_host: same}, b: {ansible_host: same}}}", "lab", "a and b are one board"),
        ("lab: {hosts: {a: {ansible_host: '-oProxyCommand=x'}}}", "lab", "not an address"),
    ],
)
def test_an_inventory_that_is_wrong_ends_before_any_board_is_asked(tmp_path, monkeypatch, capsys, text, limit, what):
    path = tmp_path / "inventory.yml"
    path.write_text(text)
    monkeypatch.setattr(work, "greet", lambda *_: pytest.fail("a board was asked"))
    monkeypatch.setattr(
        sys, "argv", ["edgepipe", "fleet", "run", kit.MODEL, "--to", "null", "-i", str(path), "-l", limit]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert not list(Journal().records(fleet.KIND))


def test_a_board_that_answers_for_another_is_named_with_it(monkeypatch):
    """The address of b00002 leads to b00001, whose key is not the one pinned for b00002."""
    real = kit.Link.open

    def opened(self, argv):
        if self.name == "b00002":
            while not any("b00001" in key for key in work._clients):
                time.sleep(0.01)
            key = null.NullLink(self.endpoint_of("b00001")).fingerprint
            raise HostKeyError(f"the host key is {key}, not the pinned one", self.name)
        return real(self, argv)

    class Link(kit.Link):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            self.endpoint_of = lambda name: type(endpoint)(name, root=endpoint.root)

    Link.open = opened
    monkeypatch.setattr(null, "open_link", Link)
    found = by_name(kit.run(kit.request(kit.members(4), plan=kit.short(0.3))))
    assert "that is the key of b00001" in found["b00002"]["reason"]
    assert Counter(board["state"] for board in found.values()) == {"done": 3, "given up": 1}


def test_a_changed_key_is_never_tried_again(monkeypatch):
    asked = Counter()
    real = kit.Link.open
    monkeypatch.setattr(kit.Link, "open", lambda self, argv: asked.update([self.name]) or real(self, argv))
    kit.infect(monkeypatch, {"b00001": "changed"})
    assert "HAS CHANGED" in by_name(kit.run(kit.request(kit.members(3))))["b00001"]["reason"]
    assert asked["b00001"] == 1


@pytest.mark.slow
def test_two_fleets_on_the_same_boards_take_turns_and_both_are_done(tmp_path):
    """Two processes and a board of this machine with a real agent, whose lock lets one of them measure at a time."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FLEET, str(tmp_path / "b0")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=280)[0].split() for process in both] == [["1", "ok"], ["1", "ok"]]
    counts = Counter(record.value["board"]["target"] for record in Journal().records("report"))
    assert counts == {"b0": 2}


def test_ten_thousand_boards_that_are_down_end_soon_each_with_its_reason(monkeypatch):
    boards = kit.members(10_000)
    boards.append(Member(Target("near", link="null"), "near"))
    kit.infect(monkeypatch, {one.name: "down" for one in boards[:-1]})
    asked = set()
    real = kit.Link.open
    monkeypatch.setattr(kit.Link, "open", lambda self, argv: asked.add(self.name) or real(self, argv))
    with kit._no_data():
        outcome = fleet.run(kit.request(boards), kit.Silent(), lambda _: None, Limits(32, 4, kit.HASTY))
    found = by_name(outcome)
    assert found.pop("near")["state"] == "done"
    assert {board["state"] for board in found.values()} == {"given up"}
    assert all(board["reason"] for board in found.values())
    assert len(asked) < 1000  # a site that is cut off is not asked board by board
    assert outcome.error.what.startswith("10000 of 10001 boards were given up")


def test_a_host_of_the_inventory_may_be_down_as_well(tmp_path):
    path = tmp_path / "inventory.yml"
    path.write_text("lab: {hosts: {a: {ansible_host: 127.0.0.1, ansible_port: 1, edgepipe_priority: 2}}}")
    members = [plan.member(host) for host in load(path).select("lab")]
    found = by_name(kit.run(kit.request(members)))
    assert found["a"]["state"] == "given up"
    assert found["a"]["reason"]
