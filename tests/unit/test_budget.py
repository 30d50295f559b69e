import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe import budget
from edgepipe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name", "most"),
    [
        ("p90<=30ms", "p90", 30.0),
        ("p99 <= 250us", "p99", 0.25),
        ("p50<=1.5s", "p50", 1500.0),
        ("drop<=1%", "drop", 0.01),
        ("drop<=0.01", "drop", 0.01),
        ("drop<=0%", "drop", 0.0),
        ("bytes<=500k", "bytes", 500_000.0),
        ("bytes<=1.5MB", "bytes", 1_500_000.0),
        ("gzip≤300kB", "gzip", 300_000.0),
        ("memory<=64M", "memory", 64e6),
        ("macs<=10M", "macs", 10e6),
        ("parameters<=1e5", "parameters", 1e5),
        ("energy<=5mJ", "energy", 5.0),
        ("energy<=0.5J", "energy", 500.0),
    ],
)
def test_one_limit(text, name, most):
    (limit,) = budget.parse(text).limits
    assert limit.name == name
    assert limit.most == pytest.approx(most)


def test_several_limits_keep_their_order_and_read_back():
    found = budget.parse(" p90<=30ms , drop<=1%,bytes<=500k")
    assert found.names == ("p90", "drop", "bytes")
    assert str(found) == "p90 <= 30 ms, drop <= 1 %, bytes <= 500 kB"
    assert found.percentile == "p90"
    assert budget.parse("").percentile == "p50"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p90=30ms", "not a limit"),
        ("p90<30ms", "not a limit"),
        ("p90>=30ms", "not a limit"),
        ("p90<=ms", "not a limit"),
        ("p90<=-3ms", "not a limit"),
        ("p90<=nanms", "not a limit"),
        ("p90<=30ms,", "not a limit"),
        ("fast", "not a limit"),
        ("p90<=1.2.3ms", "not a number"),
        ("p90<=30", "needs a unit"),
        ("p90<=30kB", "not a unit"),
        ("energy<=5MJ", "not a unit"),
        ("bytes<=5ms", "not a unit"),
        ("drop<=1ms", "not a unit"),
        ("p90<=0ms", "can't be limited"),
        ("bytes<=0", "can't be limited"),
        ("bytes<=1e999", "can't be limited"),
        ("drop<=200%", "a share"),
        ("p91<=3ms", "no such measure"),
        ("latency<=3ms", "no such measure"),
        ("p90<=3ms,p90<=4ms", "limited twice"),
    ],
)
def test_nonsense_is_refused_with_what_helps(text, said):
    with pytest.raises(UsageError, match=said) as error:
        budget.parse(text)
    assert error.value.where
    assert error.value.fix


@given(st.text(max_size=40))
def test_any_text_is_a_budget_or_a_usage_error(text):
    try:
        found = budget.parse(text)
    except UsageError:
        return
    assert all(math.isfinite(limit.most) for limit in found.limits)


def test_what_breaks_it_says_by_how_much():
    found = budget.parse("p90<=10ms,drop<=1%,bytes<=100k,energy<=1mJ")
    figures = {"p90": 15.0, "drop": 0.03, "bytes": 100_000, "energy": None}
    broken = found.broken(figures, reasons={"energy": "no meter"})
    assert [(excess.limit.name, excess.share) for excess in broken] == [
        ("p90", pytest.approx(0.5)), ("drop", pytest.approx(2.0)), ("energy", math.inf),
    ]  # fmt: skip
    assert [str(excess) for excess in broken] == [
        "p90 15 ms > 10 ms", "drop 3 % > 1 %", "energy is not known (no meter)",
    ]  # fmt: skip
    assert [excess.limit.name for excess in found.broken(figures, budget.HOST)] == ["drop"]


def test_a_gain_keeps_any_drop_and_a_limit_of_none_has_a_scale():
    none = budget.parse("drop<=0%")
    assert none.broken({"drop": -0.01}) == []
    assert none.broken({"drop": 0.0}) == []
    (excess,) = none.broken({"drop": 0.02})
    assert excess.share == pytest.approx(2.0)
