"""The page in a real browser: how soon it stands with 10,000 trials, and its frames under 100 updates a second."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import statistics
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from edgepipe import codec, fleet
from edgepipe.fleet import plan
from edgepipe.journal import Journal
from edgepipe.serve.server import Server
from edgepipe.serve.state import State
from tests import fleet_kit as kit
from tests.bench.figure import Figure, at_most, missing
from tests.browser import CHROMIUM

TRIALS, LOADS, SECONDS, RATE = 10_000, 5, 10.0, 100
LATE = 50.0  # ms; a frame that takes longer can be seen
_STANDS = """new Promise((done) => {
  const look = () => document.documentElement?.dataset.loaded
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))) : setTimeout(look, 4);
  look();
})"""
_WATCH = """window.gaps = []; window.last = performance.now();
window.frame = (now) => { gaps.push(now - last); last = now; requestAnimationFrame(frame); };
requestAnimationFrame(frame);"""


def figures(folder: Path) -> list[Figure]:
    """First load, and late frames while results come in."""
    if CHROMIUM is None:
        return [missing("serve: the page in a browser", "no chromium here")]
    os.environ["EDGEPIPE_HOME"] = str(folder / "home")
    reports = fill(TRIALS)
    state = State()
    state.refresh()
    server = Server("127.0.0.1", 0, state)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--window-size=390,844", f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        loads, gaps, drawn = asyncio.run(_visit(browser, server.url, reports))
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
        server.server_close()
    late = sum(gap > LATE for gap in gaps)
    told = f"({late} of {len(gaps)} frames, the longest {max(gaps):.0f} ms; {drawn} redraws in {SECONDS:.0f} s)"
    first = ", ".join(f"{each:.2f}" for each in loads)
    return [
        at_most(f"serve: first load, {TRIALS} boards of a trial", statistics.median(loads), 1.0, "s", f"({first})"),
        at_most(f"serve: {RATE} updates a second, late frames", 100 * late / len(gaps), 1.0, "%", told),
    ]


def fill(count: int) -> list[tuple[str, dict[str, Any], str]]:
    """Put a run of so many boards with a trial each into the journal; returns its reports."""
    kit.run(kit.request(kit.members(1), plan=kit.short(0)))
    made = next(iter(Journal().records("report"))).value
    request = kit.request(kit.members(count), plan=kit.short(0))
    request = dataclasses.replace(request, members=[
        dataclasses.replace(one, site=f"room-{at % 8}") for at, one in enumerate(request.members)
    ])  # fmt: skip
    request = codec.from_dict(plan.Request, codec.to_dict(request))  # as a reader will see it: so are the trials' ids
    Journal().append(fleet.KIND, codec.to_dict(request), "99991231-235959-bench")
    found = []
    for board, trials in plan.trials("99991231-235959-bench", request).items():
        value = {**made, "id": trials[0].id, "board": {**made["board"], "target": board, "name": board}}
        found.append(("report", value, trials[0].id))
    Journal().append_all(found)
    return found


async def _visit(browser: subprocess.Popen[str], url: str, reports: list[Any]) -> tuple[list[float], list[float], int]:
    """Load the page several times, then let results come in; seconds of each load, ms of each frame, redraws."""
    from tornado.websocket import websocket_connect

    assert browser.stderr
    port = next(found[1] for line in browser.stderr if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
    threading.Thread(target=browser.stderr.read, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as reply:
        page = next(each for each in json.load(reply) if each["type"] == "page")
    socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=1 << 28)

    async def call(method: str, **more: Any) -> Any:
        await socket.write_message(json.dumps({"id": 1, "method": method, "params": more}))
        while True:
            found = json.loads(await socket.read_message() or "{}")
            if found.get("id") == 1:
                return found.get("result")

    async def value(text: str) -> Any:
        found = await call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    loads = []
    for _ in range(LOADS):
        await call("Page.navigate", url=url)
        loads.append(float(await value(_STANDS)) / 1e3)
    await asyncio.sleep(1)
    await value(_WATCH)
    before = int(await value("Number(document.documentElement.dataset.drawn || 0)"))
    await asyncio.to_thread(_write, reports)
    gaps = await value("gaps")
    drawn = int(await value("Number(document.documentElement.dataset.drawn || 0)")) - before
    return loads, [float(gap) for gap in gaps[1:]], drawn


def _write(reports: list[Any]) -> None:
    """Keep ``RATE`` reports a second, each of another board, whose state changes with it."""
    began, journal = time.monotonic(), Journal()
    for at in range(int(SECONDS * RATE)):
        kind, value, name = reports[(at * 37) % len(reports)]
        status = "failed" if at % 3 else "throttled"
        journal.append_all([(kind, {**value, "measurement": {**value["measurement"], "status": status}}, name)])
        time.sleep(max(0.0, began + at / RATE - time.monotonic()))
