"""What a search decides, without a board: the space, the sieve, the front, the choice, the sampler."""

import itertools
import random
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe import budget, recipe, search
from edgepipe.journal import Journal
from edgepipe.record import Measurement
from edgepipe.search import front, output, trials
from edgepipe.search.sampler import Sampler
from edgepipe.search.space import Candidate, Space, arithmetic, knobs
from edgepipe.search.trials import Trial
from tests.unit import formats_kit as kit

NAMES = ("bytes", "drop", "p90")
FREE = budget.Budget()
FIGURES = st.fixed_dictionaries({name: st.integers(0, 4).map(float) for name in NAMES})
POINTS = st.lists(FIGURES, min_size=1, max_size=12)
HOST = st.fixed_dictionaries({name: st.integers(0, 3).map(float) for name in front.PROXIES})


# The front


@given(FIGURES, FIGURES, FIGURES)
def test_dominance_is_a_strict_order(a, b, c):
    assert not front.dominates(a, a, NAMES)
    assert not (front.dominates(a, b, NAMES) and front.dominates(b, a, NAMES))
    if front.dominates(a, b, NAMES) and front.dominates(b, c, NAMES):
        assert front.dominates(a, c, NAMES)


@given(POINTS)
def test_no_one_beats_the_front_and_it_beats_all_others(points):
    best = front.front(points, NAMES)
    assert best
    for at, point in enumerate(points):
        beaten = any(front.dominates(points[other], point, NAMES) for other in best)
        assert beaten == (at not in best)


@given(POINTS, FIGURES)
def test_a_beaten_newcomer_changes_nothing(points, newcomer):
    best = front.front(points, NAMES)
    if any(front.dominates(points[at], newcomer, NAMES) for at in best):
        assert front.front([*points, newcomer], NAMES) == best


def test_only_what_all_know_is_compared():
    points = [{"bytes": 1.0, "drop": None, "p90": 2.0}, {"bytes": 2.0, "drop": 0.1, "p90": 1.0}]
    assert front.known(points, front.objectives(budget.parse("p90<=1ms"))) == ("bytes", "p90")


# The sieve


@given(HOST, st.dictionaries(st.sampled_from("abc"), HOST))
def test_only_one_that_is_nowhere_better_is_beaten(figures, rivals):
    rival = front.beaten(figures, rivals)
    nowhere_better = [
        name for name, other in rivals.items() if all(other[key] <= figures[key] for key in front.PROXIES)
    ]
    assert rival == (nowhere_better[0] if nowhere_better else None)


@pytest.mark.parametrize("missing", front.PROXIES)
def test_what_is_not_known_beats_nobody_and_is_not_beaten(missing):
    whole = dict.fromkeys(front.PROXIES, 1.0)
    assert front.beaten({**whole, missing: None}, {"other": whole}) is None
    assert front.beaten(whole, {"other": {**whole, missing: None}}) is None


def test_the_board_is_spared_what_it_has_measured_or_what_cant_be_better():
    host = {"bytes": 90.0, "drop": 0.01, "macs": 5.0}

    def made(text, sha, **figures):
        return Trial(sha, text, "onnx", figures={**host, **figures}, sha256=sha)

    timed = replace(made("int8", "a"), measurement=Measurement("ok", "short", 1))
    request = SimpleNamespace(budget=budget.parse("bytes<=100"))
    found = search._Search(request, None, None, None, [timed, made("int8:entropy", "b", drop=0.0)])

    def skip(trial):
        return found._skip(Candidate(trial.recipe, trial.format), trial)

    assert skip(made("mixed", "a")) == "the same file as int8 onnx"
    assert skip(made("int8:percentile", "c")) == "nowhere better than int8 onnx, which computes alike"
    assert skip(made("int8:percentile", "c", drop=0.005)) == ""  # what was not measured stands for nothing
    assert skip(made("int8:w8a16", "d")) == ""
    assert skip(made("int8:percentile", "c", bytes=120.0)) == "bytes 120 B > 100 B"


# The choice


@given(POINTS, st.randoms())
def test_the_choice_is_on_the_front_and_does_not_hang_on_the_order(points, chance):
    points = [{"bytes": p["bytes"] + 1, "drop": p["drop"], "p50": p["p90"] + 1, "accuracy": 0.9} for p in points]
    limits = budget.parse("drop<=100%")
    at, why = front.choose(points, limits)
    assert why
    assert at in front.front(points, ("bytes", "drop", "p50"))
    shuffled = chance.sample(points, len(points))
    again, _ = front.choose(shuffled, limits)
    assert points[at] == shuffled[again]


def test_what_has_no_limit_is_what_counts():
    small = {"bytes": 10.0, "drop": 0.02, "accuracy": 0.90, "p90": 2.0}
    right = {"bytes": 40.0, "drop": 0.00, "accuracy": 0.92, "p90": 2.5}
    quick = {"bytes": 20.0, "drop": 0.01, "accuracy": 0.91, "p90": 1.0}
    points = [small, right, quick]
    assert front.choose(points, budget.parse("p90<=3ms,bytes<=50")) == (1, "the most accurate")
    assert front.choose(points, budget.parse("p90<=3ms,drop<=2%")) == (0, "the smallest")
    assert front.choose(points, budget.parse("p90<=3ms,drop<=2%,bytes<=50"))[1] == "the least size x error x time"
    assert front.choose(points, budget.parse("drop<=2%,bytes<=50,energy<=1mJ"))[1] == "the least size x error"
    timed = [{**point, "p50": point["p90"]} for point in points]
    assert front.choose(timed, budget.parse("drop<=2%,bytes<=50")) == (2, "the fastest")


def test_among_the_nearly_best_the_simplest_is_chosen():
    points = [{"bytes": 100.0, "drop": 0.0, "accuracy": 0.9, "p50": time} for time in (1.00, 1.03, 1.20)]
    limits = budget.parse("drop<=1%,bytes<=1k")
    assert front.choose(points, limits, [3, 2, 1]) == (1, "the fewest steps within 5% of the fastest")
    assert front.choose(points, limits, [2, 2, 1]) == (0, "the fastest")


def test_the_nearest_breaks_fewest_unknowns_then_least():
    limits = budget.parse("p90<=10ms,bytes<=100")
    near = {"p90": 11.0, "bytes": 110.0}
    far = {"p90": 5.0, "bytes": 300.0}
    dark = {"p90": None, "bytes": 100.0}
    assert front.nearest([far, dark, near], limits) == 2
    assert front.nearest([dark, far], limits) == 1


def test_the_blame_falls_on_what_nobody_keeps():
    limits = budget.parse("p90<=10ms,bytes<=100")
    assert front.blame([{"p90": 11.0, "bytes": 50.0}, {"p90": 12.0, "bytes": 500.0}], limits) == ("p90",)
    assert front.blame([{"p90": None, "bytes": 500.0}], limits) == ("bytes",)
    assert front.blame([{"p90": 1.0, "bytes": 500.0}, {"p90": 20.0, "bytes": 5.0}], limits) == ("p90", "bytes")
    assert front.blame([{"p90": 1.0}], budget.parse("p90<=10ms,energy<=1mJ")) == ("energy",)


# The space


def test_every_candidate_of_the_space_can_be_followed_and_is_met_once():
    space = Space(kit.tiny(), ("onnx",))
    found = [candidate for candidate, _ in itertools.islice(space.every(), 300)]
    assert len(set(found)) == len(found)
    for candidate in found[:60]:
        parsed = recipe.parse(candidate.recipe)
        assert str(parsed) == candidate.recipe
        recipe.plan(parsed, candidate.format)


def test_a_model_without_data_or_network_has_a_small_space_and_all_of_it_is_found(monkeypatch):
    kit.use_home()
    from edgepipe import model

    plain = model.load(kit.made("onnx").artifact.path)
    space = Space(plain, ("onnx",))
    found = {candidate.recipe for candidate, _ in space.every()}
    assert {"none", "fp16", "dynamic"} <= found
    assert not any("int8" in part.split(":") or "prune" in part for text in found for part in text.split("+"))
    sampler = Sampler(space, FREE)
    seen = []
    while candidate := sampler.ask():
        seen.append(candidate.recipe)
        sampler.tell(Trial("x", candidate.recipe, "onnx", figures={"bytes": 10.0, "p50": 1.0}))
    assert sorted(seen) == sorted(found)


def test_it_begins_with_the_plain_exports_and_the_formats_take_turns():
    space = Space(kit.tiny(), ("onnx", "tflite"))
    order = []
    for answers in space.first():
        candidate = space.draw(lambda name, choices, given=answers: given.get(name, choices[0]))
        order.append(str(candidate))
    assert order[:4] == ["none onnx", "none tflite", "fp16 onnx", "fp16 tflite"]
    assert len(set(order)) == len(order)


def test_mixed_is_told_the_budgets_drop():
    space = Space(kit.tiny(), ("onnx",), drop=0.005)
    answers = {"onnx file": "mixed"}
    assert str(space.draw(lambda name, choices: answers.get(name, choices[0]))) == "mixed:drop=0.005 onnx"


def test_knobs_are_words_with_a_choice_and_a_leading_number():
    step = SimpleNamespace(
        DEFAULTS={"amount": 0.5, "by": "macs", "epochs": 4, "other": 3.0},
        CHOICES={"by": ("macs", "channels")},
        LIMITS={"amount": (0.1, 0.9)},
    )
    assert knobs(step) == {"amount": (0.5, 0.3, 0.7), "by": ("macs", "channels")}
    assert knobs(SimpleNamespace(DEFAULTS={"clusters": 16}, LIMITS={"clusters": (2, 20)})) == {"clusters": (16, 8)}
    assert knobs(SimpleNamespace(DEFAULTS={"epochs": 3}, LIMITS={"epochs": (0, 9)})) == {}
    assert knobs(SimpleNamespace(DEFAULTS={})) == {}


def test_calibration_changes_numbers_and_not_arithmetic():
    def kind(text):
        return arithmetic(Candidate(text, "onnx"))

    assert kind("int8") == kind("int8:percentile") == kind("equalize+int8:bias=off")
    assert len({kind(text) for text in ("none", "int8", "int8:w8a16", "fp16", "mixed", "mixed:percentile")}) == 6


# The sampler


def play(count=25):
    """The candidates in the order they are proposed, where figures depend on the recipe alone."""
    sampler = Sampler(Space(kit.tiny(), ("onnx",)), budget.parse("p90<=3ms"))
    order = []
    for _ in range(count):
        candidate = sampler.ask()
        order.append(str(candidate))
        chance = random.Random(str(candidate))
        figures = {"bytes": chance.uniform(1, 9), "drop": chance.uniform(0, 0.1), "p90": chance.uniform(1, 9)}
        failed = {"kind": "BoardError", "what": "x"} if chance.random() < 0.2 else {}
        skipped = "too large" if chance.random() < 0.2 else ""
        figures = {**figures, "p90": None} if skipped else figures
        sampler.tell(
            Trial("x", candidate.recipe, "onnx", figures={} if failed else figures, skipped=skipped, error=failed)
        )
    return order


def test_the_same_figures_give_the_same_candidates_and_none_twice():
    first, second = play(25), play(15)
    assert first[:15] == second
    assert len(set(first)) == len(first)
    assert first[0] == "none onnx"


# What is kept and written


def test_a_trial_comes_back_from_the_journal_as_it_was_kept_last(tmp_path):
    journal = Journal(tmp_path)
    name = trials.key_of(recipe="int8", format="onnx")
    assert trials.known(journal, name) is None
    trial = Trial(name, "int8", "onnx", figures={"bytes": 10.0, "energy": None}, reasons={"energy": "no meter"})
    trials.keep(journal, trial)
    later = trials.keep(journal, trials.skipped(trial, "too large"))
    assert trials.known(Journal(tmp_path), name) == later
    assert later.status == "skipped"
    journal.append(trials.KIND, {"id": name, "strange": 1}, name)
    assert trials.known(journal, name) is None


@pytest.mark.parametrize(
    "text", ["none", "fp16", "int8:percentile,scheme=w8a16", "prune:0.25,by=channels+distill+int4:64"]
)
def test_the_toml_says_the_same_recipe(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(output.toml(Trial("x", text, "onnx"), "why\nindeed"))
    assert tomllib.loads(path.read_text())["step"]

    def actions(given):
        plan = recipe.plan(recipe.parse(given), "onnx")
        return [(action.name, action.params, action.given) for action in (*plan.network, *plan.file)]

    assert actions(str(path)) == actions(text)
    assert recipe.parse(recipe.plain(str(path)))
    assert recipe.plain(text) == text
