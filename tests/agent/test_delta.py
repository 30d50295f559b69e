"""Pieces told against a blob that is here, through the agent as a board runs it."""

import random

import pytest

from edgepipe.agent.delta import COPY, HEAD, INSERT, XOR

OLD = random.Random(1).randbytes(600_000)
NEW = OLD[:200_000] + b"changed" + OLD[200_000:]
PARTS = [
    (HEAD.pack(COPY, 0, 200_000) + HEAD.pack(INSERT, 0, 7) + b"changed", 200_007),
    (HEAD.pack(COPY, 200_000, 300_000) + HEAD.pack(XOR, 500_000, 100_000) + bytes(100_000), 400_000),
]


def told(agent, tools, new=NEW, parts=PARTS, offset=0, base=OLD):
    """Put the pieces from one that begins at ``offset`` on; the last reply."""
    at, reply = 0, None
    for data, count in parts:
        if at >= offset:
            reply = agent.ask("put", data, sha256=tools.sha(new), size=len(new), offset=at, base=tools.sha(base))
        at += count
    return reply


def test_a_blob_is_made_of_another_and_hashed_like_any(agent, tools):
    agent.push(OLD)
    assert told(agent, tools)["result"] == {"have": len(NEW), "complete": True}
    assert (agent.root / "blobs" / tools.sha(NEW)).read_bytes() == NEW
    assert not list((agent.root / "partial").iterdir())


def test_what_a_kill_left_is_gone_on_from(start, tools):
    first = start()
    first.push(OLD)
    told(first, tools, parts=PARTS[:1])
    first.kill()
    second = start()
    assert second.good("status", blobs=[tools.sha(NEW)])["have"] == {tools.sha(NEW): 200_007}
    assert told(second, tools, offset=200_000)["result"]["complete"]


def test_a_wrong_delta_leaves_nothing_and_the_whole_blob_can_come(agent, tools):
    agent.push(OLD)
    wrong = [PARTS[0], (HEAD.pack(COPY, 200_000, 399_999) + HEAD.pack(INSERT, 0, 1) + b"?", 400_000)]
    error = told(agent, tools, parts=wrong)["error"]
    assert error["kind"] == "IntegrityError" and "another hash" in error["what"]
    assert agent.good("status", blobs=[tools.sha(NEW)])["have"] == {tools.sha(NEW): 0}
    assert agent.good("put", NEW, sha256=tools.sha(NEW), size=len(NEW))["complete"]


@pytest.mark.parametrize(
    "data",
    [HEAD.pack(COPY, 599_999, 2), HEAD.pack(COPY, 0, 600_008), HEAD.pack(COPY, 0, 5) + b"\0", b"\1" * 50],
    ids=["beyond the base", "beyond the blob", "cut off", "nonsense"],
)
def test_hostile_pieces_change_nothing(agent, tools, data):
    agent.push(OLD)
    new = {"sha256": tools.sha(NEW), "size": len(NEW)}
    assert agent.bad("put", data, **new, base=tools.sha(OLD))["kind"] == "IntegrityError"
    assert agent.good("status", blobs=[tools.sha(NEW)])["have"] == {tools.sha(NEW): 0}
    for base in ("0" * 64, "../../etc/passwd", "x"):
        assert agent.bad("put", data, **new, base=base)["kind"] == "IntegrityError"
    assert told(agent, tools)["result"]["complete"]  # the channel is in step
