from __future__ import annotations

import resource
import time

import pytest

from edgepipe import board as boards
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, IntegrityError
from edgepipe.progress import Silent
from edgepipe.targets import Target
from tests.faults.helpers import agents, gone, within

TIMES = boards.Times(start=20, quick=2, stall=2, work=2, margin=1)
LOCAL = Target("local", link="local")
SHA = "a" * 64


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("silent", DeadlineError),
        ("endless", IntegrityError),
        ("events", DeadlineError),
        ("nan", IntegrityError),
        ("inf", IntegrityError),
        ("wrong-json", IntegrityError),
        ("not-object", IntegrityError),
        ("deep", IntegrityError),
        ("ansi", BoardError),
        ("blames-link", BoardError),
        ("unknown-key", IntegrityError),
        ("wrong-type", IntegrityError),
        ("payload", IntegrityError),
        ("bye", BoardError),
    ],
)
def test_every_lie_is_a_typed_error_in_time(mode, kind, fake_agent, tmp_path):
    fake_agent(mode)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with boards.connect(LOCAL, "me@test", Silent(), TIMES) as client:
        assert client.hello().board.cpu == "fake"
        with within(TIMES.stall + 2), pytest.raises(EdgepipeError) as caught:
            client.status([SHA])
    assert type(caught.value) is kind
    assert all(char.isprintable() or char == "\n" for char in caught.value.what + caught.value.where + caught.value.fix)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert gone(agents(tmp_path))


def test_claimed_bytes_are_not_believed(fake_agent):
    fake_agent("claims")
    with boards.connect(LOCAL, "me@test", Silent(), TIMES) as client, pytest.raises(IntegrityError, match="claims"):
        client.push([(b"x", SHA)])


@pytest.mark.parametrize("link", ["local", "loopback"])
def test_ten_megabytes_of_stderr_block_nothing(link, fake_agent):
    fake_agent("stderr")
    with boards.connect(Target(link, link=link), "me@test", Silent(), TIMES) as client, within(3):
        assert client.status().free_bytes == 1


@pytest.mark.parametrize("link", ["local", "loopback"])
def test_an_agent_that_never_exits_is_ended(link, fake_agent, tmp_path):
    fake_agent("never-exits")
    with boards.connect(Target(link, link=link), "me@test", Silent(), TIMES) as client:
        client.status()
        running = agents(tmp_path)
        assert running
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert gone(running, 1.0)


def test_the_channel_is_closed_after_a_broken_message(fake_agent):
    fake_agent("wrong-json")
    with boards.connect(LOCAL, "me@test", Silent(), TIMES) as client:
        with pytest.raises(IntegrityError):
            client.status()
        with pytest.raises(EdgepipeError, match="closed"):
            client.status()
