"""A fleet of boards that are not there on a Dask cluster with four gateways; one of them and the host are killed."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepipe.fleet import schedule
from tests import fleet_kit as kit
from tests.bench.figure import Figure, at_most, missing

SITES = ("north", "east", "south", "west")
RESUME = 2.0  # s, apart from the trials that are left
PARALLEL = 128
STILL = 1.5  # s that what is at work at gateways may take to end


def figures(folder: Path) -> list[Figure]:
    """BOARDS (1,000) trials on four gateways: what was lost or done twice, a resume, and the planner's time."""
    try:
        from tests import dask_kit
    except ImportError as error:
        return [missing("fleet: gateways", f"pip install 'edgepipe[dask]' ({error})")]
    largest = int(os.environ.get("BOARDS") or 1000)
    os.environ["EDGEPIPE_HOME"] = str(folder / "home")
    kit.run(kit.request(kit.members(1), plan=kit.short(0)))  # the file is made, so that no run pays for it
    with dask_kit.Cluster(folder) as cluster:
        for site in SITES:
            cluster.gateway(site, 2 * PARALLEL // len(SITES))
        host = _Host(folder, cluster.flags)
        sizes = [size for size in (100, 300, 1000) if size < largest]
        whole = {size: host.finish(host.start("run", size)) for size in sizes}
        told = _killed(host, cluster, largest)
    planned = {size: found["planner"] for size, found in whole.items()} | {largest: told["planner"]}
    line = statistics.linear_regression(list(planned), [1e3 * seconds for seconds in planned.values()])
    each = ", ".join(f"{size}: {1e3 * seconds / size:.2f} ms" for size, seconds in planned.items())
    name = f"fleet: {largest} boards on 4 gateways"
    return [
        at_most(f"{name}, lost", told["lost"], 0, "", f"({told['story']})"),
        at_most(f"{name}, done twice", told["twice"], 0, ""),
        at_most(f"{name}, a resume but for its work", told["resume"], RESUME, "s", f"({told['left']} left)"),
        at_most(
            f"{name}, planner, a trial", 1e3 * planned[largest] / largest, 1.0, "ms",
            f"({each}; {line.intercept:+.0f} ms {line.slope:+.2f} ms a board)",
        ),
    ]  # fmt: skip


def _killed(host: _Host, cluster: Any, count: int) -> dict[str, Any]:
    """Kill a gateway after a quarter of the trials and the host after half of them; then go on."""
    began = time.monotonic()
    process = host.start("run", count)
    first = _wait(host, process, count // 4)
    cluster.gateways[0].kill()
    cluster.gateways[0].wait()
    cluster.gateway(SITES[0], 2 * PARALLEL // len(SITES))
    half = _wait(host, process, count // 2)
    process.send_signal(signal.SIGKILL)
    spent = host.spent()
    process.wait()
    recorded = host.recorded()
    time.sleep(STILL)
    found = host.finish(host.start("resume", count))
    measured = cluster.counts()
    twice = sum(measured[name] > 1 for name in found["trials"])
    rate = count / (time.monotonic() - began)
    story = f"gateway killed at {first}, host at {half} trials; {rate:.0f} trials a second"
    kept = all(name in found["trials"] for name in recorded)
    return {
        "lost": count - found["done"] + (not kept), "twice": twice, "resume": found["total"] - found["scheduled"],
        "planner": found["planner"] + spent, "left": count - len(recorded), "story": story,
    }  # fmt: skip


def _wait(host: _Host, process: subprocess.Popen[bytes], count: int) -> int:
    """Wait until so many trials are recorded."""
    while (found := len(host.recorded())) < count:
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.1)
    return found


class _Host:
    """Runs as processes of their own, in homes of their own, that can be killed."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self.folder, self.flags = folder, flags
        self.home = folder
        self._names: dict[str, None] = {}
        self._read = 0

    def start(self, verb: str, count: int) -> subprocess.Popen[bytes]:
        """Begin ``run`` or ``resume``."""
        self.home = self.folder / f"home-{count}"
        self._names, self._read = {}, 0
        words = [verb, str(count), str(self.folder / f"boards-{count}"), str(self.home / "spent"), *self.flags[1::2]]
        self.home.mkdir(exist_ok=True)
        code = f"from tests.bench import fleet_dask; fleet_dask.be_host(*{words!r})"
        environment = os.environ | {"EDGEPIPE_HOME": str(self.home)}
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)

    @staticmethod
    def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What a run told at its end."""
        out = process.communicate()[0]
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def recorded(self) -> list[str]:
        """Names of the trials that are in the journal; only what is new in it is read, for the host needs the CPU."""
        path = self.home / "journal.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            self._names |= dict.fromkeys("trial-" + each[:32].decode() for each in whole.split(b'"id":"trial-')[1:])
        return list(self._names)

    def spent(self) -> float:
        """CPU seconds of the planner of a run that was killed."""
        return float((self.home / "spent").read_text() or 0)


def be_host(verb: str, count: str, root: str, spent: str, *flags: str) -> None:
    """Be the host; print what was done, and write the planner's CPU seconds down all the time."""
    from edgepipe import fleet
    from edgepipe.fleet.engines import Choice, Options
    from edgepipe.fleet.lane import Limits

    took: dict[str, float] = {"planner": 0.0, "scheduled": 0.0}
    real, look = schedule.Schedule.run, schedule.Schedule._look_round

    def run(self: schedule.Schedule) -> None:
        wall, thread = time.monotonic(), time.thread_time()

        def looked(self: schedule.Schedule) -> None:
            look(self)
            Path(spent).write_text(str(time.thread_time() - thread))

        schedule.Schedule._look_round = looked  # type: ignore[method-assign]
        real(self)
        took["planner"], took["scheduled"] = time.thread_time() - thread, time.monotonic() - wall

    schedule.Schedule.run = run  # type: ignore[method-assign]
    members = [
        replace(one, site=SITES[at % len(SITES)], target=replace(one.target, root=root))
        for at, one in enumerate(kit.members(int(count)))
    ]
    limits = Limits(PARALLEL, 16, replace(kit.HASTY, stall=60.0, grace=30.0, backoff=0.3))
    options = dict(zip(("scheduler", "tls_ca", "tls_cert", "tls_key"), flags, strict=True))
    engine = Choice("dask", Options(**options))
    began = time.monotonic()
    with kit._no_data():
        if verb == "run":
            request = kit.request(members, plan=kit.short(0))
            outcome = fleet.run(request, kit.Silent(), lambda _: None, limits, engine)
        else:
            outcome = fleet.resume("", kit.Silent(), lambda _: None, limits, engine)
    total = time.monotonic() - began
    found = {"done": outcome.document["done"], "total": total, **took}
    print(json.dumps(found | {"trials": [report.id for report in outcome.document["reports"]]}))
