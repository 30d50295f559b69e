"""The compression study: its file, its cells, going on after anything, what it concludes, and what it writes."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepipe import bench, deploy, measurement
from edgepipe.cli import main
from edgepipe.errors import BoardError, DeadlineError, IntegrityError, LinkError, UsageError
from edgepipe.journal import Journal
from edgepipe.progress import Silent
from edgepipe.record import Bound
from edgepipe.study import findings, output, plan, results, run
from tests.unit import formats_kit as kit
from tests.unit import report_samples

FILE = """
targets = ["local"]
seconds = 1
[[grid]]
models = ["fashion-mbv2"]
recipes = ["none", "int8"]
formats = ["onnx", "tflite"]
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def study(home):
    return write(home, FILE)


def write(folder, text, name="s"):
    path = folder / f"{name}.toml"
    path.write_text(text)
    return plan.read(path)


class Board:
    """In place of the whole chain: gives a report that was made up, or fails as it is told."""

    def __init__(self, monkeypatch, **fates):
        self.fates, self.asked = fates, []
        monkeypatch.setattr(deploy, "deploy", self.deploy)

    def deploy(self, request, _progress):
        self.asked.append((request.recipe, *request.formats))
        fate = self.fates.get(f"{request.recipe}_{request.formats[0]}")
        if fate:
            raise fate
        size = {"none": 400_000}.get(request.recipe, 100_000)
        made = report_samples.report(
            request.model, request.recipe, request.formats[0], request.target, measured(), size=size
        )
        return deploy.Outcome([Journal().append_report(replace(made, id=""))])


def measured():
    raw = report_samples.raw(report_samples.steady(random.Random(1)))
    return measurement.conclude(raw, report_samples.PLAN, report_samples.OPTIONS)


def test_every_combination_once_in_the_order_of_the_file(home):
    found = write(
        home,
        FILE
        + '[[grid]]\nmodels = ["fashion-mbv2"]\nrecipes = "sparse:{0.3,0.5},epochs=0+{none,int8}"\nformats = "onnx"\n'
        '[[grid]]\nmodels = ["fashion-mbv2"]\nrecipes = ["int8"]\nformats = ["onnx"]\n',
    )
    assert [(cell.recipe, cell.format) for cell in found.cells] == [
        ("none", "onnx"), ("none", "tflite"), ("int8", "onnx"), ("int8", "tflite"),
        ("sparse:0.3,epochs=0", "onnx"), ("sparse:0.3,epochs=0+int8", "onnx"),
        ("sparse:0.5,epochs=0", "onnx"), ("sparse:0.5,epochs=0+int8", "onnx"),
    ]  # fmt: skip
    assert {cell.family for cell in found.cells} == {"image-classification"}
    assert len({cell.key for cell in found.cells}) == 8
    assert found.plan.min_seconds == 1 and found.plan.profile == "quick-1s" and found.name == "s"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "not a TOML file"),
        ("", "nothing to study"),
        (FILE + "seeds = 3\n", "no such key of a grid: seeds"),
        ("treads = 2\n" + FILE, "no such key of a study: treads"),
        ('threads = "2"\n' + FILE, "threads must be a whole number"),
        ("threads = 0\n" + FILE, "at least 1"),
        ("max_drop = 3\n" + FILE, "not a share"),
        ('name = "../x"\n' + FILE, "not a name"),
        (FILE.replace('"none", "int8"', ""), "recipes must name at least one"),
        (FILE.replace('"none", "int8"', '"int9"'), "no such recipe step: int9"),
        (FILE.replace('"none", "int8"', '"sparse:{0.3"'), "a brace without its partner"),
        (FILE.replace('"tflite"', '"tflight"'), "no such format: tflight"),
        (FILE.replace("fashion-mbv2", "fashion-mbv3"), "no such model: fashion-mbv3"),
        (FILE.replace('"local"', '"lokal"'), "no such target: lokal"),
        ('profile = "fast"\n' + FILE, "no such profile: fast"),
    ],
)
def test_a_wrong_file_is_one_clear_error(home, text, says):
    with pytest.raises(UsageError) as raised:
        write(home, text)
    assert says in raised.value.what


def test_what_can_not_be_stays_with_its_reason_and_is_never_tried(home, monkeypatch):
    asked = Board(monkeypatch)
    found = write(home, FILE.replace('"int8"]', '"int4:group=32"]').replace('"tflite"', '"openvino"'))
    bare = kit.tiny()
    Path(bare.folder / "damaged").mkdir(exist_ok=True)
    outcome = run.run(found, Silent())
    unfit = [row for row in outcome.rows if row.status == results.UNFIT]
    assert all(row.reason for row in unfit)
    assert len(asked.asked) == len(outcome.rows) - len(unfit)


def test_a_model_that_is_damaged_is_a_cell_that_can_not_be(home, monkeypatch):
    asked = Board(monkeypatch)
    folder = home / "broken"
    folder.mkdir()
    source = Path("models/fashion-mbv2")
    for name in ("model.py", "model.toml"):
        text = (source / name).read_text().replace('"../_fashion', f'"{(source / "../_fashion").resolve()}')
        (folder / name).write_text(text)
    (folder / "weights.safetensors").write_bytes(b"torn")
    found = write(home, FILE.replace('"fashion-mbv2"', f'"fashion-mbv2", "{folder}"'))
    outcome = run.run(found, Silent())
    broken = [row for row in outcome.rows if row.cell.model == str(folder)]
    assert len(broken) == 4 and all(row.status == results.UNFIT and "weights" in row.reason for row in broken)
    assert len(asked.asked) == 4


def test_a_model_without_data_is_measured_and_what_needs_data_can_not_be(home, monkeypatch):
    asked = Board(monkeypatch)
    folder, source = home / "bare", Path("models/fashion-mbv2")
    folder.mkdir()
    (folder / "model.py").write_text((source / "model.py").read_text())
    (folder / "weights.safetensors").write_bytes((source / "weights.safetensors").read_bytes())
    card = (source / "model.toml").read_text()
    (folder / "model.toml").write_text(card[: card.index("[data]")] + card[card.index("[accuracy]") :])
    rows = run.run(write(home, FILE.replace("fashion-mbv2", str(folder))), Silent()).rows
    assert {row.cell.recipe: row.status for row in rows} == {"none": "ok", "int8": results.UNFIT}
    assert all("calibration" in row.reason for row in rows if row.cell.recipe == "int8")
    assert len(asked.asked) == 2


def test_a_recipe_that_does_not_fit_its_model_is_never_tried(home, monkeypatch):
    asked = Board(monkeypatch)
    found = write(home, FILE.replace("fashion-mbv2", "fashion-vae").replace('"int8"', '"sparse:0.5,epochs=1"'))
    rows = run.run(found, Silent()).rows
    assert len(asked.asked) == sum(row.status != results.UNFIT for row in rows)
    assert all(row.reason for row in rows if row.status == results.UNFIT)


def test_a_cell_that_fails_stays_and_the_rest_goes_on(study, monkeypatch):
    asked = Board(
        monkeypatch,
        int8_onnx=BoardError("the runtime crashed", "board"),
        none_tflite=DeadlineError("too slow", "board"),
        int8_tflite=MemoryError(),
    )
    rows = run.run(study, Silent()).rows
    assert [row.status for row in rows] == ["ok", "timeout", "failed", "failed"]
    assert [row.reason for row in rows[1:]] == [
        "too slow (board)", "the runtime crashed (board)", "this machine has too little memory for the cell",
    ]  # fmt: skip
    again = run.run(study, Silent()).rows
    assert [row.status for row in again] == [row.status for row in rows] and len(asked.asked) == 4
    asked.fates.clear()
    assert {row.status for row in run.run(study, Silent(), retry=True).rows} == {"ok"} and len(asked.asked) == 7
    run.run(study, Silent(), again=True)
    assert len(asked.asked) == 11


def test_a_target_that_vanishes_takes_its_cells_with_it_until_the_next_run(home, monkeypatch):
    found = write(home, FILE.replace('["local"]', '["local", "loopback"]'))
    board = Board(monkeypatch)
    real = board.deploy

    def vanishing(request, progress):
        if request.target == "local" and request.recipe == "int8":
            board.asked.append("gone")
            raise LinkError("no route", "local")
        return real(request, progress)

    monkeypatch.setattr(deploy, "deploy", vanishing)
    rows = run.run(found, Silent()).rows
    assert [row.status for row in rows] == ["ok", "ok", "unreachable", "unreachable", "ok", "ok", "ok", "ok"]
    assert board.asked.count("gone") == 1
    monkeypatch.setattr(deploy, "deploy", real)
    board.asked.clear()
    assert {row.status for row in run.run(found, Silent()).rows} == {"ok"} and len(board.asked) == 2


def test_ctrl_c_keeps_what_was_measured(study, monkeypatch):
    board = Board(monkeypatch, int8_onnx=KeyboardInterrupt())
    outcome = run.run(study, Silent())
    assert outcome.interrupted and [row.status for row in outcome.rows] == ["ok", "ok", "to do", "to do"]
    board.fates.clear()
    board.asked.clear()
    assert not run.run(study, Silent()).interrupted and len(board.asked) == 2


def test_what_the_figures_depend_on_makes_another_cell(home, monkeypatch):
    keys = {
        write(home, text).cells[0].key
        for text in (FILE, "threads = 2\n" + FILE, FILE.replace("seconds = 1", "seconds = 2"), 'eval = "full"\n' + FILE)
    }
    assert len(keys) == 4
    assert write(home, 'title = "another"\nmax_drop = 0.02\n' + FILE).cells[0].key in keys


_KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from edgepipe import deploy
from edgepipe.journal import Journal
from edgepipe.progress import Silent
from edgepipe.study import plan, run
from tests.unit import report_samples
from tests.unit.test_study import measured

def slow(request, _progress):
    print(request.recipe, request.formats[0], flush=True)
    time.sleep(0.05)
    made = report_samples.report(request.model, request.recipe, request.formats[0], request.target, measured())
    return deploy.Outcome([Journal().append_report(replace(made, id=""))])

deploy.deploy = slow
run.run(plan.read(Path(sys.argv[1])), Silent())
"""


def test_killed_at_any_moment_it_repeats_no_cell_that_was_kept(home):
    (home / "s.toml").write_text(FILE.replace('"none", "int8"', '"none","int8","fp16","dynamic","sparse:0.5,epochs=0"'))
    begun, kept = [], 0
    for after in (0.05, 0.15, None):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(home / "s.toml")], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        if after is not None:
            begun.append(process.stdout.readline().strip())
            time.sleep(after)
            os.kill(process.pid, signal.SIGKILL)
        begun += process.stdout.read().split("\n")[:-1]
        process.wait()
        kept += after is None and process.returncode == 0
    assert kept == 1
    found = plan.read(home / "s.toml")
    assert all(results.row(Journal(), cell).status == "ok" for cell in found.cells)
    # Only the cell that was under way at a kill is begun again.
    assert len(begun) - len(set(begun)) <= 2 and len(set(begun)) == len(found.cells)


def rows_of(study, figures):
    """Rows with a size, an accuracy and a time each: (recipe, format) -> (bytes, accuracy, ms)."""
    found = []
    for cell in study.cells:
        size, accuracy, ms = figures[cell.recipe]
        made = report_samples.report(
            cell.model, cell.recipe, cell.format, cell.target, measured(), size=size, accuracy=accuracy
        )
        latency = replace(made.measurement.latency_ms, p50=Bound(ms, ms * 0.99, ms * 1.01))
        accuracies = replace(made.accuracy, baseline=0.93, on_device=accuracy, exported=accuracy)
        made = replace(made, measurement=replace(made.measurement, latency_ms=latency), accuracy=accuracies)
        found.append(results.Row(cell, "ok", "", made))
    return found


@pytest.fixture
def sparse(home):
    """A study of how far pruning holds."""
    text = FILE.replace('"none", "int8"', '"none","int8","sparse:{0.3,0.5,0.7,0.9},epochs=0"').replace(', "tflite"', "")
    found = write(home, text)
    table = {
        "none": (400, 0.93, 2.0), "int8": (100, 0.928, 1.0),
        "sparse:0.3,epochs=0": (400, 0.931, 2.0), "sparse:0.5,epochs=0": (400, 0.925, 2.0),
        "sparse:0.7,epochs=0": (400, 0.88, 2.0), "sparse:0.9,epochs=0": (400, 0.925, 2.0),
    }  # fmt: skip
    return found, rows_of(found, table)


def test_the_threshold_is_the_last_amount_before_the_first_that_broke(sparse):
    (line,) = findings.thresholds(sparse[1], 0.01)
    assert (line.holds, line.breaks, line.step) == (0.5, 0.7, "sparse")  # 0.9 holds by luck: it does not count
    assert line.points == ((0.3, 0.931), (0.5, 0.925), (0.7, 0.88), (0.9, 0.925))
    (line,) = findings.thresholds(sparse[1], 0.1)
    assert (line.holds, line.breaks) == (0.9, None)
    (line,) = findings.thresholds(sparse[1], 0.0)
    assert (line.holds, line.breaks) == (0.3, 0.5)


def test_conclusions_are_made_of_the_numbers(sparse):
    texts = [each["text"] for each in findings.conclusions(sparse[1], 0.01)]
    assert any("smallest within 1.0%: int8: 4x smaller" in text and "faster, 0.500x the time" in text for text in texts)
    assert any("held up to 0.5 and lost more than 1.0% at 0.7" in text for text in texts)
    strict = [each["text"] for each in findings.conclusions(sparse[1], 0.0)]
    assert not any("int8: 4x smaller" in text for text in strict)
    assert findings.conclusions([results.Row(sparse[0].cells[0], "to do")], 0.01)[0]["text"].endswith("1 to do")


def test_speed_says_no_more_than_its_interval_allows():
    assert findings.speed(Bound(0.5, 0.45, 0.55)).startswith("faster")
    assert findings.speed(Bound(1.5, 1.3, 1.7)).startswith("slower")
    assert findings.speed(Bound(0.97, 0.9, 1.04)).startswith("no difference in time shown")
    assert findings.speed(Bound(0.5)) == "0.500x the time"
    assert findings.speed(Bound(None, reason="why")) == "time not compared (why)"


def test_everything_is_written_and_can_be_read_again(sparse, home):
    found, rows = sparse
    hostile = replace(rows[1].cell, recipe="int8")
    rows = [*rows[:-1], results.Row(hostile, "failed", "<script>alert(1)</script> \x1b[31m")]
    page = output.write(found, rows, home / "out", Silent())
    text = page.read_text()
    assert "<script>alert" not in text and "\x1b" not in text and "What was found" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    plots = sorted((home / "out" / "plots").iterdir())
    assert len(plots) >= 3
    for plot in plots:
        ET.fromstring(plot.read_text())
    document = output.read(home / "out")
    assert document["schema"] == "edgepipe.study/1" and len(document["cells"]) == 6
    with (home / "out" / "cells.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["recipe"] for row in table] == [cell["recipe"] for cell in document["cells"]]
    parquet = pytest.importorskip("pyarrow.parquet").read_table(home / "out" / "cells.parquet").to_pylist()
    assert [row["p50_ms"] for row in parquet] == [cell["p50_ms"] for cell in document["cells"]]
    assert parquet[1]["smaller"] == 4 and parquet[0]["energy_mj"] is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": "edgepipe.search/1"}', '{"schema":"edgepipe.study/1"}'])
def test_something_else_is_no_study(home, text):
    (home / "study.json").write_text(text)
    for place in (home, home / "study.json"):
        with pytest.raises(UsageError, match="not the document of a study"):
            output.read(place)
    with pytest.raises(UsageError, match="no study can be read"):
        output.read(home / "nowhere")


def test_two_studies_are_held_against_each_other(sparse):
    found, rows = sparse
    a = output.document(found, rows)["cells"]
    b = output.document(found, rows[1:])["cells"]
    b[0] |= {"p50_ms": 2.0, "p50_low_ms": 1.9, "p50_high_ms": 2.1, "accuracy": 0.9}
    b[1]["status"] = "failed"
    made = findings.compared(a, b)
    assert made["only_in_a"] == [{"model": "fashion-mbv2", "recipe": "none", "format": "onnx", "target": "local"}]
    assert made["only_in_b"] == []
    first = made["cells"][0]
    assert first["verdict"] == "slower" and first["p50_ratio"]["value"] == pytest.approx(2.0)
    assert first["accuracy_change"] == pytest.approx(-0.028)
    assert made["cells"][2]["verdict"] == "no difference in time shown"


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["edgepipe", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_plans_measures_writes_and_reports(home, monkeypatch, capsys):
    (home / "s.toml").write_text(FILE)
    Board(monkeypatch, int8_tflite=IntegrityError("the model broke here", "rung exported"))
    assert command(monkeypatch, "study", home / "s.toml", "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] and planned["to_measure"] == 4
    assert set(planned["cells"][0]) >= {"model", "family", "recipe", "format", "target"}
    assert command(monkeypatch, "study", home / "s.toml", "-o", home / "out", "--json", "--quiet") == 0
    spoken = capsys.readouterr()
    made = json.loads(spoken.out)
    assert [cell["status"] for cell in made["cells"]] == ["ok", "ok", "ok", "failed"] and not spoken.err
    assert "the model broke here" in made["cells"][3]["reason"]
    assert command(monkeypatch, "report", "--study", home / "out", "--compare", home / "out") == 0
    assert "1.000x" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_cell_goes_the_whole_way_and_the_board_keeps_its_release(home, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_CACHE", str(kit.home() / "cache"))
    short = replace(bench.PROFILES["quick"], processes=1, warmup_seconds=0.1, idle_seconds=0.0, min_samples=40)
    monkeypatch.setitem(bench.PROFILES, "quick", short)
    text = FILE.replace("seconds = 1", "seconds = 0.2").replace("fashion-mbv2", str(kit.tiny().folder))
    text = text.replace('"none", "int8"', '"none", "sparse:0.5,epochs=0"').replace(', "tflite"', "")
    found = write(home, text)
    rows = run.run(found, Silent()).rows
    assert [row.reason for row in rows] == ["", ""]
    assert all(row.p50.value and row.report.accuracy.on_device is not None for row in rows)
    assert all(row.report.release is None for row in rows)
    payoff = rows[1].report.pruning
    assert payoff.latency_ratio.value and results.figures(rows, rows[1])["latency_ratio"] == payoff.latency_ratio.value


def test_the_limit_of_a_metric_that_is_better_low_lies_above_it():
    from edgepipe import scores
    from edgepipe.tasks import generative, object_detection

    assert scores.limit(250.0, 0.01, generative) == pytest.approx(252.5)
    assert scores.limit(0.8, 0.01, object_detection) == pytest.approx(0.79)
    for task, before in ((generative, 250.0), (object_detection, 0.8)):
        assert scores.lost(before, scores.limit(before, 0.02, task), task) == pytest.approx(0.02)


@pytest.fixture
def sampled(home, monkeypatch):
    """Rows of the generative model whose files answer with made-up images, one of them with none."""
    from edgepipe import verify
    from edgepipe.study import pictures

    found = write(home, FILE.replace("fashion-mbv2", "fashion-vae").replace(', "tflite"', ""))
    table = {"none": (400, 247.0, 2.0), "int8": (100, 251.0, 1.0)}
    rows = rows_of(found, table)
    marked = []
    for row in rows:
        accuracy = replace(row.report.accuracy, metric="-ELBO", unit="nats", lower_is_better=True, baseline=247.0)
        artifact = replace(row.report.artifact, path=str(home / "s.toml"), recipe=row.cell.recipe)
        marked.append(replace(row, report=replace(row.report, accuracy=accuracy, artifact=artifact)))

    def answer(artifact, dataset):
        if artifact.recipe == "int8":
            raise BoardError("the runtime crashed", "host")
        image, code = np.zeros((len(dataset.inputs), 1, 28, 28)), np.zeros((len(dataset.inputs), 4))
        return [image, image - 100, code, code]

    monkeypatch.setattr(verify, "outputs_of", answer)
    return found, marked, pictures


def test_what_a_generative_model_makes_is_shown_side_by_side(sampled):
    _, rows, pictures = sampled
    text = pictures.section(rows, "shipped")
    assert text.count("data:image/png") == 3 and "the runtime crashed" in text
    assert pictures.section([replace(rows[0], report=None)], "shipped").count("data:image/png") == 1
    image = pytest.importorskip("PIL.Image")
    canvas = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    assert (np.asarray(image.open(io.BytesIO(pictures.png(canvas)))) == canvas).all()


def test_a_loss_in_nats_is_said_in_nats(sampled):
    found, rows, _ = sampled
    texts = [each["text"] for each in findings.conclusions(rows, 0.02)]
    assert any("-ELBO +4 nats (1.62% lost)" in text for text in texts)
    from edgepipe.study import page

    assert "+4 nats" in page.page(found, rows)


@pytest.mark.parametrize("file", ["quick.toml", "compression.toml"])
def test_the_shipped_studies_span_the_families(home, file):
    found = plan.read(Path("studies") / file)
    families = {"image-classification", "object-detection", "text-classification", "generative"}
    families |= {"language-modelling"} if file == "compression.toml" else set()
    assert {cell.family for cell in found.cells} - {"unknown"} == families or not _fetchable()


def _fetchable():
    """Whether the text model's encoder can be had."""
    from edgepipe import given
    from edgepipe.errors import EdgepipeError

    try:
        given.load("spam-minilm", given.Said())
    except EdgepipeError:
        return False
    return True
