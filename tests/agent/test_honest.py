"""Honest numbers: a run that was disturbed or throttled is not called ok; measuring changes no setting of the board."""

import random
import threading
import time

import pytest

from edgepipe import measurement
from edgepipe.codec import from_dict
from edgepipe.schema import RawRun, RunOptions
from tests.guarantees.figure import report, scale
from tests.unit import report_samples

CPU = "sys/devices/system/cpu/cpu0/cpufreq"
TRIES = scale(60, 2000)


def disturbed(source):
    """A made-up run that something befell: a lasting change of level, a drift, firmware bits, or a falling clock."""
    groups = report_samples.steady(source)
    kind = source.randrange(4)
    if kind == 0:
        group, slower = source.choice(groups), source.uniform(1.15, 2.0)
        start, length = source.randrange(0, 200), source.randrange(120, 200)
        group[start : start + length] = [int(ns * slower) for ns in group[start : start + length]]
        return report_samples.raw(groups)
    if kind == 1:
        grown = source.uniform(0.3, 1.0)
        groups[0] = [int(ns * (1 + grown * at / len(groups[0]))) for at, ns in enumerate(groups[0])]
        return report_samples.raw(groups)
    if kind == 2:
        start = source.randrange(1, 20)
        bits = [0] * start + [source.choice([0x1, 0x2, 0x4, 0x8, 0x20000, 0x50005])] * (24 - start)
        return report_samples.raw(groups, states=report_samples.states(80.0, bits=bits))
    start, low = source.randrange(6, 16), source.uniform(0.3, 0.85)
    clocks = [1_800_000] * start + [int(1_800_000 * low)] * (24 - start)
    return report_samples.raw(groups, states=report_samples.states(80.0, clocks=clocks))


@pytest.mark.guarantee
def test_a_disturbed_run_is_not_called_ok():
    source = random.Random(19)
    runs = (measurement.conclude(disturbed(source), report_samples.PLAN, RunOptions()) for _ in range(TRIES))
    false = sum(run.status == "ok" for run in runs)
    report(19, f"{false} of {TRIES:,} disturbed runs called ok", ok=false < max(1, TRIES / 100))


@pytest.mark.guarantee
def test_a_board_that_throttles_is_told_and_left_as_it_was(start, tools, tmp_path):
    folder = tmp_path / "tree" / CPU
    folder.mkdir(parents=True)
    (folder / "scaling_cur_freq").write_text("1800000\n")
    (folder / "scaling_governor").write_text("ondemand\n")
    agent = start(sysfs_root=tmp_path / "tree")
    manifest, content = tools.null(sleep=0.002, name="hot")
    agent.push(content)
    over = threading.Event()

    def heat():
        if not over.wait(4.5):
            (folder / "scaling_cur_freq").write_text("1000000\n")

    replay = threading.Thread(target=heat)
    replay.start()
    plan = tools.QUICK.__class__(processes=1, min_seconds=9, min_samples=20, warmup_seconds=0.1, deadline_seconds=60)
    began = time.time()
    raw = from_dict(RawRun, agent.bench(manifest, plan=plan))
    over.set()
    replay.join()
    run = measurement.conclude(raw, plan, RunOptions())
    report(19, f"a clock that falls by 44 % in the run: {run.status}", ok=run.status == "throttled")
    changed = [path for path in folder.iterdir() if path.name != "scaling_cur_freq" and path.stat().st_mtime > began]
    same = (folder / "scaling_governor").read_text() == "ondemand\n"
    report(20, "measuring changes no setting of the board", ok=same and not changed)
