"""Row 11: a hundred boards, a fifth of them sick in five ways, and how long that takes beside the healthy run."""

import pytest

from tests import fleet_kit as kit
from tests.guarantees.figure import FULL_FORM, report, scale

HOW = ("crash", "hang", "flap", "lie", "down")


@pytest.mark.guarantee
def test_one_board_never_stops_the_fleet(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {})
    # The small form is short: of its turns the best count, as noise only ever slows one.
    found = kit.beside_the_healthy(monkeypatch, HOW, rounds=scale(2, 10), turns=scale(2, 1))
    assert found.done == found.others == 80
    most = 1.2 if FULL_FORM else 1.5  # the small form is too short to hold against noise of the machine
    words = f"{found.sick} of 100 crash, hang, flap, lie or are down: {found.done} of {found.others} others done"
    report(11, f"{words}; {found.ratio:.2f} x the healthy run", ok=found.ratio <= most)
