"""One at a time on a board; the lock dies with its holder."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.guarantees.figure import report, scale


def timed(pid):
    try:
        return b"child" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def wait_for_child(agent, tools):
    """Wait for the process that is timed; others may run beside it."""
    assert tools.eventually(lambda: any(map(timed, agent.children())), 20)
    return agent.children()


def slow(agent, tools, sleep=0.01):
    """Begin a bench that would take 20 s."""
    manifest, content = tools.null(sleep=sleep, name="slow")
    agent.push(content)
    plan = tools.QUICK.__class__(processes=1, min_seconds=20, deadline_seconds=60)
    agent.send("bench", manifest=manifest, plan=plan, options={})
    return manifest


def test_the_second_one_is_told_who_holds_the_board(start, tools):
    holder, other = start(), start()
    holder.good("hello", owner="ann\x1b[31m@desk")
    slow(holder, tools)
    wait_for_child(holder, tools)
    error = other.bad("rollback")
    assert error["kind"] == "BusyError" and "ann @desk" in error["what"]
    lock = other.good("status")["lock"]
    assert lock["owner"] == "ann @desk" and lock["pid"] == holder.process.pid and abs(lock["since"] - time.time()) < 60
    manifest, content = tools.null(name="unlocked")
    other.push(content)
    assert other.bad("activate", manifest=manifest)["kind"] == "BusyError"


@pytest.mark.guarantee
def test_kill_9_of_the_holder_frees_the_board_and_ends_its_child(start, tools):
    holder, other = start(), start()
    slow(holder, tools)
    children = wait_for_child(holder, tools)
    assert list((holder.root / "tmp").iterdir())
    holder.kill()
    began = time.monotonic()
    assert other.good("gc")["blobs"] >= 0
    seconds = time.monotonic() - began
    report(9, f"free {seconds * 1e3:.0f} ms after a kill", ok=seconds < 1)
    assert tools.eventually(lambda: not any(map(tools.alive, children)), 1), children
    assert other.good("status")["lock"] is None and not list((holder.root / "tmp").iterdir())


def test_end_of_stdin_during_a_bench_ends_all_of_it_within_a_second(start, tools):
    holder, other = start(), start()
    slow(holder, tools)
    children = wait_for_child(holder, tools)
    time.sleep(0.3)
    began = time.monotonic()
    holder.process.stdin.close()
    assert holder.process.wait(5) == 1
    assert time.monotonic() - began < 1
    assert not any(map(tools.alive, children))
    assert other.good("gc") and not list((holder.root / "tmp").iterdir())


def test_end_of_stdin_is_noticed_behind_requests_sent_ahead(start, tools):
    holder = start()
    slow(holder, tools)
    children = wait_for_child(holder, tools)
    for _ in range(5):
        holder.send("put", b"x" * 3000, sha256="0" * 64, size=1 << 20)
    holder.process.stdin.close()
    assert holder.process.wait(2) == 1
    assert not any(map(tools.alive, children))


@pytest.mark.guarantee
def test_of_many_who_race_only_one_holds_the_board(start, tools):
    agents = [start() for _ in range(scale(6, 20))]
    manifest, content = tools.null(sleep=0.05)
    agents[0].push(content)
    plan = tools.QUICK.__class__(processes=1, min_seconds=2.0, min_samples=1, warmup_seconds=0.1, deadline_seconds=30)
    for agent in agents:
        agent.send("bench", manifest=manifest, plan=plan, options={})
    replies = [agent.reply() for agent in agents]
    assert sum(reply["ok"] for reply in replies) == 1
    assert {reply["error"]["kind"] for reply in replies if not reply["ok"]} == {"BusyError"}
    assert agents[1].bench(manifest)["processes"]
    report(9, f"{len(agents)} race, 0 overlaps", ok=True)


def test_a_stopped_child_does_not_outlive_the_agent(start, tools):
    """SIGSTOP: a child that can't even be scheduled."""
    holder = start()
    slow(holder, tools)
    child = next(filter(timed, wait_for_child(holder, tools)))
    os.kill(child, signal.SIGSTOP)
    holder.process.stdin.close()
    assert holder.process.wait(3) == 1 and not tools.alive(child)


def test_who_waits_gets_the_board_when_it_is_free(start, tools):
    holder, other = start(), start()
    holder.good("hello", owner="ann@desk")
    slow(holder, tools)
    wait_for_child(holder, tools)
    other.good("hello", owner="bob@desk", wait=0.2)
    assert other.bad("gc")["kind"] == "BusyError"
    other.good("hello", owner="bob@desk", wait=60)
    other.send("gc")
    assert tools.eventually(lambda: other.process.poll() is None)
    time.sleep(1.2)
    holder.kill()
    assert other.reply()["ok"]
    assert {event["phase"] for event in other.events} == {"wait for ann@desk"}


def test_who_waits_and_hangs_up_is_gone(start, tools):
    holder, other = start(), start()
    slow(holder, tools)
    wait_for_child(holder, tools)
    other.good("hello", owner="bob@desk", wait=600)
    other.send("gc")
    other.process.stdin.close()
    assert other.process.wait(5) in (0, 1)
