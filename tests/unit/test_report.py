"""Tables and the page: nothing is lost, nothing hostile gets through, a null says why."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from edgepipe import codec, measurement
from edgepipe import report as report_verb
from edgepipe.errors import UsageError
from edgepipe.record import Accuracy, Bound, Measurement, Payoff, Report, Rung, Sizes, Step
from edgepipe.report import html, svg, tables
from edgepipe.report.rows import bound, caveat, drop, final, millis, number, plain, rows, score, size, span
from tests.unit.report_samples import OPTIONS, PLAN, gallery, raw, report, steady

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Reads a page strictly: tags must nest, and what a browser would load or run is listed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data


def shown(*reports: Report, width: int = 140) -> str:
    out = io.StringIO()
    tables.show_reports(list(reports), Console(file=out, width=width, highlight=False))
    return out.getvalue()


def measured(**changes) -> Measurement:
    return replace(measurement.conclude(raw(steady(random.Random(1))), PLAN, OPTIONS), **changes)


# What is shown


def test_latest_keeps_one_of_each_kind():
    old, new = report(run=measured(), number=1), report(run=measured(), number=2)
    others = [
        report("other", run=measured(), number=3),
        report(recipe="int8", run=measured(), number=3),
        report(form="tflite", run=measured(), number=3),
        report(target="loopback", run=measured(), number=3),
        report(run=measured(threads=4), number=3),
        report(run=measured(batch=8), number=3),
        report(run=measured(profile="standard"), number=3),
    ]
    kept = report_verb.latest([old, *others, new])
    assert old not in kept and {r.id for r in kept} == {r.id for r in [new, *others]} and len(kept) == 8
    assert kept[-1] == new, "latest first"


@pytest.mark.parametrize("width", [40, 80, 100, 140, 200])
def test_tables_fit_and_hold_every_row(width):
    reports = gallery()
    out = shown(*reports, width=width)
    assert max(map(len, out.splitlines())) <= width
    flat = re.sub(r"\s+", "", out)
    for wanted in ("failed", "SIGILL", "unstable", "throttled", "notmeasured", "thismachine,notaboard"):
        assert wanted in flat
    if width >= 80:
        assert "fashion-resnet8" in out and "92.31 → 92.18 %" in out and "\N{MINUS SIGN}0.13 pt" in out
    assert flat.count("fashion-") >= len(reports), "every row is there"
    assert "\x1b" not in out


def test_a_row_says_what_was_measured():
    run = measured()
    out = shown(report(recipe="int8", run=run, size=310_000, accuracy=0.92), report(run=run))
    assert "310 kB" in out and "4x" in out and "92.31 → 92.00 %" in out
    p50 = run.latency_ms.p50
    assert millis(p50.value) in out and f"[{span(p50)}]" in out


def test_threads_and_batch_are_told_apart():
    one, two = report(run=measured()), report(recipe="int8", run=measured(threads=4, batch=8))
    out = re.sub(r"\s+", " ", shown(one, two, width=200))
    assert "int8, 4 threads, batch 8" in out and "1 thread" not in out
    assert "int8, 4 threads, batch 8" in html.page([one, two])


def test_a_warning_that_several_runs_share_is_told_once():
    groups = steady(random.Random(2))
    groups[1] = [int(v * 1.2) for v in groups[1]]
    run = measurement.conclude(raw(groups), PLAN, OPTIONS)
    out = re.sub(r"\s+", " ", shown(report(run=run), report(recipe="int8", run=run), width=140))
    assert out.count("processes_differ") == 1
    assert "processes_differ, 2 of 2 runs:" in out
    assert "edgepipe runs show ID" in out


def test_few_rows_speak_their_warnings_with_what_helps():
    groups = steady(random.Random(2))
    groups[1] = [int(v * 1.2) for v in groups[1]]
    out = re.sub(r"\s+", " ", shown(report(run=measurement.conclude(raw(groups), PLAN, OPTIONS))))
    assert "processes_differ" in out and "--profile standard" in out


def test_accuracy_taken_on_the_host_says_so():
    lost = replace(report(run=measured()), accuracy=Accuracy("top1", 100, 0.9, 0.9, 0.8, None, reason="no board"))
    assert "80.00 % (host)" in shown(lost)
    assert ", on the host" in html.page([lost])


def test_no_reports_say_what_to_do():
    assert "edgepipe deploy" in shown()
    assert "edgepipe deploy" in Page(html.page([])).text


def test_one_report_whole():
    out = io.StringIO()
    tables.show_report(gallery()[2], Console(file=out, width=100, highlight=False))
    text = out.getvalue()
    for wanted in ("quantized:int8", "0.999100", "p99", "no meter", "CPUExecutionProvider", "ab" * 32, "torch 2.13.0"):
        assert wanted in text
    assert "openvino" not in text, "a version that is not installed is not listed"


def test_exports_show_steps_accuracy_and_parity():
    one = report(recipe="int8", size=331_000, accuracy=0.92)
    ladder = SimpleNamespace(accuracy=one.accuracy, parity=one.parity)
    made = SimpleNamespace(steps=one.steps)
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    shown = SimpleNamespace(source="24 made-up samples")
    alike = {"artifact": one.artifact, "made": made, "payoff": None, "parity": one.parity, "shown": shown}
    exports = [SimpleNamespace(ladder=part, **alike) for part in (ladder, None)]
    tables.show_exports(exports, console)
    text = out.getvalue()
    assert "what changing the network bought" not in text
    assert "331 kB" in text and "quantized:int8" in text and "baseline 92.31 %" in text
    assert "no evaluation data" in text and "24 made-up samples" in text


def test_what_changing_the_network_bought_is_told_everywhere():
    sizes = Sizes(1_240_000, 1_140_000, 1_150_000, 308_074, 10_200_000), Sizes(1_240_000, 370_000, 380_000, 308_074)
    bought = Payoff("none", "onnxruntime", 0.8, 1000, 799, *sizes, Bound(1.01, 0.99, 1.03), "no speed-up: 1.01")
    one = replace(report(recipe="sparse:0.8"), pruning=bought)
    out = io.StringIO()
    tables.show_report(one, Console(file=out, width=120))
    for text in (out.getvalue(), Page(html.page([one])).text):
        assert "no speed-up: 1.01" in text
        assert "80.0% asked for, 79.9% of the weights stored" in text
        assert "1.14 MB -> 370 kB" in text
        assert "10.2 M -> \N{EN DASH}" in text
    assert codec.from_dict(Report, json.loads(json.dumps(codec.to_dict(one)))) == one


# Nulls and odd values


@pytest.mark.parametrize("status", measurement.STATUSES[3:])
def test_a_row_without_figures_shows_its_reason_everywhere(status):
    run = measurement.failed(status, "the board went away", PLAN, OPTIONS)
    nothing = replace(report(run=run), accuracy=None, release=None, parity=[], steps=[])
    assert "the board went away" in shown(nothing) and status in shown(nothing)
    assert "the board went away" in Page(html.page([nothing, report(run=measured())])).text
    out = io.StringIO()
    tables.show_report(nothing, Console(file=out, width=100))
    assert "the board went away" in out.getvalue()


def test_every_optional_value_may_be_null():
    bare = report(
        run=measured(latency_ms=None, memory_peak_bytes=None, throughput_per_s=None, load_ms=None, first_ms=None)
    )
    bare = replace(
        bare,
        steps=[Step("int8")],
        accuracy=Accuracy("top1", 0, reason="no labels"),
        parity=[Rung("exported", None, None, None, None, "not run")],
        board=replace(bare.board, ram_bytes=None, name="", model="", governor=None),
        versions={},
    )
    for width in (80, 140):
        shown(bare, width=width)
    tables.show_report(bare, Console(file=io.StringIO(), width=80))
    assert "no labels" in Page(html.page([bare, bare])).text


def test_raw_samples_that_are_gone_leave_a_note(tmp_path):
    run = measured(raw=measurement.keep_raw(tmp_path, raw(steady(random.Random(1)))))
    assert "Latency of fashion-resnet8" in html.page([report(run=run)])
    next(tmp_path.iterdir()).unlink()
    assert "can&#x27;t be read" in html.page([report(run=run)])


def test_one_process_of_equal_samples_can_be_drawn(tmp_path):
    data = raw([[1_000_000] * 200])
    run = replace(measurement.conclude(data, PLAN, OPTIONS), raw=measurement.keep_raw(tmp_path, data))
    Page(html.page([report(run=run), report(recipe="int8", run=run)]))


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "\N{EN DASH}"), (0, "0 B"), (999, "999 B"), (1240, "1.24 kB"), (331_000, "331 kB"), (4.2e12, "4,200 GB")],
)
def test_sizes(count, text):
    assert size(count) == text


def test_numbers_read_well():
    assert [millis(v) for v in (3.7, 0.284, 100.0, 1234.5, None)] == ["3.70", "0.284", "100", "1,234", "\N{EN DASH}"]
    assert [number(v) for v in (4e-6, 0.41, 12_345.6)] == ["4e-06", "0.41", "12,346"]
    assert span(Bound(1.0, 1.4191, 1.4229)) == "1.419\N{EN DASH}1.423"
    assert span(Bound(1.0, 2.0, 2.0)) == "2.00\N{EN DASH}2.00" and span(Bound(1.0)) == ""
    assert score(2.5, Accuracy("perplexity", 10, 2.5)) == "2.5" and drop(Accuracy("perplexity", 10, 2.5, 2.6)) == "+0.1"
    assert final(None) == (None, "") and bound(None, "p50").reason == "not measured"


def test_smaller_needs_the_same_model_and_format():
    found = rows([report(size=1000), report(recipe="int8", size=250), report(recipe="int8", form="tflite", size=250)])
    assert found[1].smaller == 4.0
    assert found[2].smaller == 4960.0, "its own first step"
    assert rows([replace(report(recipe="int8", size=250), steps=[])])[0].smaller is None


# Boards


def test_this_machine_and_emulators_never_pass_for_a_board():
    emulated = replace(report(run=measured()), board=replace(report().board, emulated="qemu-user -cpu cortex-a72"))
    assert "emulated" in shown(emulated) and "not those of a board" in html.page([emulated])
    assert caveat(report(target="local").board) and caveat(report(target="loopback").board)
    assert caveat(report(target="pi4").board) == ""
    page = html.page([report(target="loopback", run=measured()), report(target="pi4", run=measured())])
    assert page.index(">pi4 (") < page.index(">loopback ("), "boards first"
    assert page.count('class="badge"') == 1


def test_times_of_two_boards_share_no_plot():
    page = html.page(gallery())
    plots = re.findall(r'<svg role="img" aria-label="Latency against.*?</svg>', page)
    assert len(plots) == 2
    assert "throttled" in plots[0] and "throttled" not in plots[1]
    assert plots[0].count("hollow") == 2, "the unstable and the throttled run"
    assert plots[1].count("hollow") == 0


def test_only_ok_runs_are_ranked():
    def point(x: float, y: float, *, solid: bool = True) -> svg.Point:
        return svg.Point(x, y, "p", "p", solid=solid)

    best, good, beaten, unstable = point(1, 0.8), point(2, 0.9), point(2.5, 0.85), point(0.1, 0.99, solid=False)
    assert svg.pareto([beaten, unstable, good, best]) == [best, good]
    assert svg.pareto([point(1, 0.5), point(1, 0.7)]) == [point(1, 0.7)]


# The page


def test_the_page_is_whole_and_asks_nothing_of_a_network(tmp_path):
    text = html.page(gallery(tmp_path))
    page = Page(text)
    assert "default-src 'none'" in text
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "img", "base", "form"}
        assert tag != "link" or attributes["href"] == "data:,"
        assert "src" not in attributes
        assert not attributes.get("href", "#").startswith(("http", "//"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text and "@import" not in text
    assert not re.search(r"https?://", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert len(ids) == len(set(ids)) and links == set(ids)


def test_every_plot_is_well_formed_and_described(tmp_path):
    plots = re.findall(r'<svg role="img".*?</svg>', html.page(gallery(tmp_path)), re.DOTALL)
    assert len(plots) > 20
    for plot in plots:
        root = ElementTree.fromstring(plot)  # our own text
        assert root.find("title").text and root.find("desc").text and root.get("aria-label")
        for value in re.findall(r'="(-?[\d.]+|nan|inf)"', plot):
            assert value not in {"nan", "inf"} and abs(float(value)) < 2000


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></svg><script>alert(1)</script>",
    "<!-- ",
    "]]>&lt;&amp;",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe",
    "[red]markup[/red] [link=http://x]y[/link]",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(text, tmp_path):
    data = raw(steady(random.Random(1)))
    run = replace(
        measurement.conclude(data, PLAN, OPTIONS),
        raw=measurement.keep_raw(tmp_path, data),
        precision_executed=text,
        provider=text,
        status=text,
        reason=text,
        warnings=[measurement.Caution(text, text, text)],
        clocks={text: text},
    )
    one = report(text, text, text, text, run)
    board = replace(one.board, cpu=text, os=text, model=text, name=text, python=text, emulated=text, kernel=text)
    evil = replace(
        one,
        id=text,
        created=text,
        board=board,
        versions={text: text},
        steps=[Step(text, {text: text}, 10, 0.5, 1.0, text)],
        parity=[Rung(text, 0.1, 0.1, 0.9, 0.1, text)],
        accuracy=replace(one.accuracy, metric=text, dataset=text, reason=text),
    )
    page = html.page([evil, evil])
    read = Page(page)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not {"img", "x"} & {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    for plot in re.findall(r'<svg role="img".*?</svg>', page, re.DOTALL):
        ElementTree.fromstring(plot)
    for width in (80, 140):
        out = io.StringIO()
        console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
        tables.show_reports([evil], console)
        tables.show_report(evil, console)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue())
        assert len(out.getvalue()) < 400_000
        if text.startswith("[red]"):
            assert "[red]" in out.getvalue()
    assert len(page) < 2_000_000


def test_plain_text_has_no_control_characters_and_an_end():
    assert plain("a\x1b[0m\nb\u202ec") == "a\ufffd[0m\ufffdb\ufffdc"
    assert len(plain("x" * 10_000)) == 2000


def test_a_page_that_can_not_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        report_verb.write_html([], tmp_path / "file" / "page.html")
    assert caught.value.fix
    report_verb.write_html([report(run=measured())], tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_axes_have_round_ticks_in_order():
    axis = svg.Axis(0.08, 42.0, 0, 500, log=True)
    assert axis.ticks() == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    assert axis.at(0.08) == pytest.approx(0) and axis.at(42.0) == pytest.approx(500)
    assert svg.Axis(0.9, 1.0, 0, 1).ticks() == pytest.approx([0.9, 0.92, 0.94, 0.96, 0.98, 1.0])


def test_power_and_energy_are_shown_with_all_they_stand_on():
    from edgepipe import measurement
    from edgepipe.report.rows import measurement_facts
    from edgepipe.schema import Plan, RunOptions
    from tests.unit import power_kit

    run = measurement.conclude(power_kit.run(), Plan(), RunOptions())
    facts = dict(measurement_facts(run))
    meter = r"ina3221, VDD_IN \(board\), 20 Hz, steps of 0\.001 W"
    assert re.fullmatch(rf"5(\.\d+)? W, (2|1\.99|2\.01) W at rest; {meter}", facts["power"])
    figure = r"[\d.]+ mJ \[[\d.]+ to [\d.]+\]"
    assert re.fullmatch(rf"an inference: gross {figure}, net of rest {figure}", facts["energy"])
    run = measurement.conclude(power_kit.run(idle=0.0), Plan(), RunOptions())
    assert dict(measurement_facts(run))["energy"].endswith("(no net figure: idle power was not measured)")
    assert "not known at rest" in dict(measurement_facts(run))["power"]


def test_a_report_becomes_the_same_json_as_by_asdict_and_shares_no_container_with_it():
    one = report()
    found = codec.to_dict(one)
    assert found == dataclasses.asdict(one)
    found["steps"].clear()
    found["versions"]["python"] = "none"
    assert codec.to_dict(one) == dataclasses.asdict(one)
    assert "python" not in one.versions
