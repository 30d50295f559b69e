"""The pure decisions about releases and orders; `make mutants` shows that each of them is held by a test."""

from dataclasses import replace

import pytest

from edgepipe.agent import rules
from edgepipe.agent.orders import Statement
from edgepipe.agent.rules import Links, Trust
from edgepipe.errors import BoardError, IntegrityError

ORDER = Statement("release", "ab" * 32, "pi4", 8)
KNOWN = Trust("pi4", counter=7, last="cd" * 32)


def words(raised):
    return raised.value.what, raised.value.where, raised.value.fix


def test_links_name_nothing_at_first_and_never_the_same_release_twice():
    assert Links() == Links(None, None) and (Links().current, Links().previous) == (None, None)
    assert Links("a", "a") == Links("a", None)
    assert Links("a", "b").previous == "b"
    assert Links(None, "b").previous == "b"


def test_activation_keeps_the_release_before():
    assert rules.activated(Links(), "a") == Links("a")
    assert rules.activated(Links("a"), "b") == Links("b", "a")
    assert rules.activated(Links("b", "a"), "c") == Links("c", "b")
    assert rules.activated(Links("b", "a"), "a") == Links("a", "b")
    assert rules.activated(Links("b", "a"), "b") == Links("b", "a")


def test_a_rollback_changes_places_and_needs_a_release_to_go_back_to():
    assert rules.rolled_back(Links("b", "a")) == Links("a", "b")
    assert rules.rolled_back(Links(None, "a")) == Links("a", None)
    for links, name in ((Links("b"), "b"), (Links(), "none")):
        with pytest.raises(BoardError) as raised:
            rules.rolled_back(links)
        assert words(raised) == (
            "there is no previous release to go back to",
            f"current release {name}",
            "deploy another release first; each one keeps the one before",
        )


def test_a_release_given_up_is_not_gone_back_to():
    assert rules.withdrawn(Links("b", "a")) == Links("a", None)
    assert rules.withdrawn(Links("b")) == Links()


def test_all_but_what_the_links_name_may_go():
    there = frozenset("abcd")
    assert rules.collectable(Links("a", "b"), there) == {"c", "d"}
    assert rules.collectable(Links("a"), there) == {"b", "c", "d"}
    assert rules.collectable(Links(), there) == there
    assert rules.collectable(Links("x", "y"), there) == there


@pytest.mark.parametrize("counter", [8, 9, 7 + (1 << 20)])
def test_the_next_order_for_this_board_passes(counter):
    rules.admit(replace(ORDER, counter=counter), "release", ORDER.subject, KNOWN)


def test_a_new_board_takes_the_first_order():
    assert (Trust("pi4").counter, Trust("pi4").last) == (0, "")
    rules.admit(replace(ORDER, counter=1), "release", ORDER.subject, Trust("pi4"))


def test_the_order_acted_upon_last_passes_again():
    rules.admit(ORDER, "release", ORDER.subject, replace(KNOWN, counter=8, last=ORDER.digest))
    rules.admit(ORDER, "release", ORDER.subject, replace(KNOWN, counter=100, last=ORDER.digest))


@pytest.mark.parametrize("counter", [-1, 0, 6, 7, 8 + (1 << 20)])
def test_an_old_order_and_an_absurd_counter_are_refused(counter):
    with pytest.raises(IntegrityError) as raised:
        rules.admit(replace(ORDER, counter=counter), "release", ORDER.subject, KNOWN)
    assert words(raised) == (
        f"refused: counter {counter} does not follow the board's 7; it may be a replay",
        "release on pi4",
        "run the same command again: it signs anew",
    )


@pytest.mark.parametrize(("verb", "subject"), [("site", ORDER.subject), ("release", "ee" * 32), ("site", "ee" * 32)])
def test_an_order_about_something_else_is_refused(verb, subject):
    with pytest.raises(IntegrityError) as raised:
        rules.admit(ORDER, verb, subject, KNOWN)
    assert words(raised) == ("refused: what is signed is not what is asked for", f"{verb} on pi4", "sign it anew")


def test_an_order_for_another_board_is_refused_and_its_name_cut():
    with pytest.raises(IntegrityError) as raised:
        rules.admit(replace(ORDER, target="x" * 99), "release", ORDER.subject, replace(KNOWN, last=ORDER.digest))
    assert words(raised) == (
        f"refused: it is signed for {'x' * 64!r}, and this board is 'pi4'",
        "release on pi4",
        "name the target as the board does, or pin its signers again under the other name",
    )
