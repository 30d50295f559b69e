"""Runs with a meter whose truth is known."""

from __future__ import annotations

import numpy as np

from edgepipe.schema import Power, PowerSamples, ProcessSamples, RawRun, Window

METER = Power(source="ina3221", rail="VDD_IN", boundary="board", resolution_w=0.001)
IDLE_W, LOAD_W, CALL_S = 2.0, 5.0, 0.01


def noise(rng, count, sigma, rho):
    """Noise whose values resemble their neighbours with correlation ``rho``."""
    fresh = rng.normal(0, sigma * np.sqrt(1 - rho**2), count)
    series = np.empty(count)
    series[0] = rng.normal(0, sigma)
    for i in range(1, count):
        series[i] = rho * series[i - 1] + fresh[i]
    return series


def run(
    seed=0, *, rate=20.0, processes=3, seconds=20.0, idle=10.0, sigma=0.05, rho=0.5, jitter=0.02, power=METER,
    load=LOAD_W, rest=IDLE_W, spread=0.0, batch=1, step=0.001,
):  # fmt: skip
    """A board that rests, then runs processes with pauses of 2 s at some power in between.

    Its truth: ``rest`` and ``load`` W, `CALL_S` a call; readings at ``rate`` Hz with noise, in steps of ``step`` W.
    ``spread`` is how far processes differ from each other in power.
    """
    rng = np.random.default_rng(seed)
    start, windows, groups, levels = 1.0 + idle + 2.0, [], [], []
    for _ in range(processes):
        calls = CALL_S * (1 + rng.normal(0, jitter, int(seconds / processes / CALL_S)))
        windows.append(Window(start, start + float(calls.sum())))
        groups.append([int(call * 1e9) for call in calls])
        levels.append(load * (1 + rng.normal(0, spread)))
        start = windows[-1].end + 2.0
    at = np.arange(0.3, start, 1 / rate) + rng.uniform(-0.2, 0.2, len(np.arange(0.3, start, 1 / rate))) / rate
    truth = np.where(at < 1.0 + idle, rest, (rest + load) / 2)
    for window, level in zip(windows, levels, strict=True):
        truth[(at >= window.start - 1.0) & (at <= window.end + 0.2)] = level
    watts = np.round((truth + noise(rng, len(at), sigma, rho)) / step) * step
    return RawRun(
        runtime="null", runtime_version="", precision_executed="", provider="", states=[], timer_overhead_ns=None,
        processes=[
            ProcessSamples(0, 0, 20, True, None, group, batch, window)
            for group, window in zip(groups, windows, strict=True)
        ],
        power=power, power_samples=PowerSamples(at.tolist(), watts.tolist()),
        idle=Window(1.0, 1.0 + idle) if idle else None, began=0.0,
    )  # fmt: skip
