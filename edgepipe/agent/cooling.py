"""Wait until the board is cool enough to measure, for a stated time at most."""

from __future__ import annotations

import time
from typing import Callable, Optional

from edgepipe.agent import state, worker
from edgepipe.schema import Cooling

_PERIOD_SECONDS = 0.5


def cool(
    target_c: float,
    most_seconds: float,
    sysfs_root: str,
    cancelled: Callable[[], bool],
    on_progress: worker.Progress,
) -> Cooling:
    """Wait until the hottest thermal zone is at most ``target_c``, or ``most_seconds`` are over, or none is to be seen.

    Raises:
        CancelledError: the host went away.
    """
    began = time.monotonic()
    before = now = _hottest(sysfs_root)
    while now is not None and now > target_c and time.monotonic() - began < most_seconds:
        worker.go_on(cancelled)
        on_progress(f"cool from {now:.0f} to {target_c:g} C", time.monotonic() - began)
        time.sleep(_PERIOD_SECONDS)
        now = _hottest(sysfs_root)
    return Cooling(target_c, before, now, round(time.monotonic() - began, 1))


def _hottest(sysfs_root: str) -> Optional[float]:
    return max(state.temperatures_c(sysfs_root).values(), default=None)
