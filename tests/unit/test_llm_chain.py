"""Language models in the chain: from a GGUF to a release, and as cells of a study, with the agent as the board's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe import bench, deploy, plugins, scores
from edgepipe.agent.runtimes import _decoder
from edgepipe.artifact import ExportOptions
from edgepipe.errors import GateError, IntegrityError, UsageError
from edgepipe.given import Said
from edgepipe.llm import chain, decode, files, gguf, measure, source
from edgepipe.progress import Silent
from edgepipe.schema import RunOptions
from edgepipe.study import findings, output, plan, results, run
from tests.unit import llm_kit as kit

SHORT = bench.Plan("short", processes=1, min_seconds=0.2, min_samples=40, warmup_seconds=0.05, warmup_cap_seconds=0.5)
STUDY = """
title = "Bits"
seconds = 0.5
eval = "shipped"
max_drop = 0.5
[[grid]]
models = ["{model}"]
recipes = ["none", "int8", "int4:group=16", "fp16", "prune:0.5"]
formats = ["onnx", "tflite"]
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))  # so that the model is exported once


@pytest.fixture(autouse=True)
def home(tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEPIPE_CACHE", kept)
    monkeypatch.setattr(source, "text", lambda ref, progress: "the tree that the tiger took to the town. " * 40)
    return tmp_path


def asked(tiny: Path, **changes: Any) -> deploy.Request:
    return replace(deploy.Request(str(tiny), "local", plan=SHORT, evaluation="shipped"), **changes)


def test_a_study_has_its_cells_with_every_figure(tiny: Path, home: Path) -> None:
    (home / "s.toml").write_text(STUDY.format(model=tiny))
    study = plan.read(home / "s.toml")
    rows = run.run(study, Silent()).rows
    got = {(row.cell.recipe, row.cell.format): row for row in rows}
    assert {key: row.status for key, row in got.items() if row.status != results.UNFIT}.keys() == {
        ("none", "onnx"), ("int8", "onnx"), ("int4:group=16", "onnx"),
    }  # fmt: skip
    assert all(row.reason for row in rows if row.status == results.UNFIT)
    document = output.document(study, rows)
    cells = {cell["recipe"]: cell for cell in document["cells"] if cell["format"] == "onnx"}
    for name in ("none", "int8", "int4:group=16"):
        cell = cells[name]
        assert cell["status"] in {"ok", "unstable"}, cell["reason"]
        assert cell["family"] == "language-modelling" and cell["metric"] == "perplexity" and cell["samples"] == 7
        assert cell["accuracy"] > 1 and cell["accuracy_where"] == "on the board"
        assert cell["p50_ms"] > 0 and cell["first_ms"] > 0 and cell["throughput_per_s"] > 0
        assert cell["memory_peak_bytes"] > cell["bytes"] and cell["parameters"] > 50_000
        assert cell["drop_error"] is not None
    assert cells["int8"]["smaller"] > 2 and "n-bit" in cells["int8"]["precision_executed"]
    assert cells["none"]["drop"] == pytest.approx(0, abs=1e-3)
    assert abs(cells["int8"]["drop"]) < 0.3
    page = output.write(study, rows, home / "out", Silent()).read_text()
    assert "tokens/s" in page and "first token" in page and "1024 tokens of lee, windows of 256, stride 128" in page
    told = [each["text"] for each in document["conclusions"] if each["family"] == "language-modelling"]
    assert sum("tokens a second" in text for text in told) == 3
    assert not any("source" in text for text in told)  # its weights are floats
    assert json.loads((home / "out" / output.DOCUMENT).read_text())["cells"]


def test_a_plan_fetches_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_fetched", lambda packed, progress: pytest.fail("it was fetched"))
    (home / "s.toml").write_text(STUDY.format(model="smollm2-135m"))
    cells = plan.read(home / "s.toml").cells
    assert {cell.model for cell in cells} == {"smollm2-135m"} and len({cell.key for cell in cells}) == 10
    assert sum(not cell.problem for cell in cells) == 3
    document = deploy.dry_run(deploy.Request("smollm2-135m", "local", recipe="int4"))
    assert document["model"]["task"] == chain.TASK
    with pytest.raises(UsageError, match="no such model file"):
        (home / "s.toml").write_text(STUDY.format(model="gone.gguf"))
        plan.read(home / "s.toml")


def test_it_becomes_a_release_that_tests_itself(tiny: Path) -> None:
    (report,) = deploy.deploy(asked(tiny, recipe="int8"), Silent()).reports
    assert report.release is not None and report.release.changed
    assert [rung.rung for rung in report.parity] == ["exported", "quantized:int8", "on_device"]
    assert report.accuracy is not None and report.accuracy.unit == "ppl" and report.accuracy.lower_is_better
    assert report.steps[1].params == {"group": 32}
    assert set(report.accuracy.further["on_device"]) == {"nats a token", "lost", "lost, at least", "lost, at most"}
    with pytest.raises(GateError, match="perplexity rose"):
        worse = deploy.deploy(asked(tiny, recipe="int8", max_drop=-0.9), Silent())
        assert worse.error is not None
        raise worse.error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"formats": ("tflite",)}, "written as onnx alone"),
        ({"options": RunOptions(batch=2)}, "one sequence at a time"),
        ({"opset": 17}, "the opset and the inputs"),
        ({"said": Said(task="x")}, "takes no data, shapes or preprocessing"),
        ({"recipe": "fp16"}, "not by fp16"),
        ({"recipe": "prune:0.5+int8"}, "not by prune:0.5"),
        ({"recipe": "int8:samples=5"}, "without samples"),
        ({"recipe": "int4:group=7"}, "no such form of the weights: int4-g7"),
        ({"evaluation": "some"}, "no such evaluation set"),
    ],
)
def test_what_it_cannot_be_is_said_before_anything_is_made(tiny: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        deploy.deploy(asked(tiny, **changes), Silent())


def test_a_text_too_short_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "text", lambda ref, progress: "too short")
    with pytest.raises(UsageError, match="make no two windows of 256"):
        deploy.deploy(asked(tiny), Silent())


def test_two_models_of_one_shape_have_files_of_their_own(tiny: Path, home: Path) -> None:
    other = home / "other.gguf"
    raw = bytearray(tiny.read_bytes())
    raw[gguf.read(tiny).tensors["blk.0.ffn_up.weight"].start + 2] ^= 0xFF
    other.write_bytes(raw)
    one, two = (
        chain._file(chain.load(str(p), Silent()), "int8", files.variant("int8"), Silent())[0] for p in (tiny, other)
    )
    assert one.sha256 != two.sha256  # so that none is taken for the other by what it weighs, computes, or is on a board
    assert one.files[1].sha256 != two.files[1].sha256


def test_an_answer_begins_anew_at_no_cost_and_is_the_same(tiny: Path) -> None:
    path = str(files.made(tiny, files.variant("fp32"), chain.CONTEXT, Silent()))
    prompt = [3 + at % 250 for at in range(chain.PROMPT)]
    answer = _decoder.Answer(_decoder.Decoder(path, 1), [*prompt, 9, 9])
    found = [answer.next() for _ in range(2 * chain.FOLLOWING + 1)]
    assert found[1 : chain.FOLLOWING + 1] == found[chain.FOLLOWING + 1 :]
    assert found[: chain.FOLLOWING] == decode.generate(path, 1, prompt, chain.FOLLOWING, end=-1)
    with pytest.raises(ValueError, match="room for 4"):
        _decoder.Decoder(path, 1, 4).step([1] * 5)


def test_a_long_text_is_taken_in_by_pieces(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(files.made(tiny, files.variant("fp32"), chain.CONTEXT, Silent()))
    text, rows = [3 + (7 * at) % 250 for at in range(50)], [3, 19, 20, 49]
    decoder = _decoder.Decoder(path, 1, 50)
    whole = decoder.step(text, rows)
    monkeypatch.setattr(_decoder, "PIECE", 10)  # the second piece has two of the rows, two pieces have none
    decoder.forget()
    assert np.allclose(decoder.step(text, rows), whole, atol=1e-3) and decoder.seen == 50
    decoder.forget()
    assert np.allclose(decoder.step(text), whole[-1:], atol=1e-3)


def test_the_metric_knows_what_is_worse() -> None:
    task = plugins.task(chain.TASK)
    text, worse = [np.array([1.0, 2.0, 3.0])], [np.array([1.0, 2.3, 3.3])]
    counts = np.array([4, 4, 4])
    assert task.metric(text, counts) == pytest.approx(math.exp(2))
    lost = scores.lost(task.metric(text, counts), task.metric(worse, counts), task)
    assert lost == pytest.approx(math.exp(0.2) - 1)
    told = task.agreement(text, worse)
    assert told["lost"] == pytest.approx(lost) and told["lost, at least"] < lost < told["lost, at most"]
    assert task.disagreement(text, worse) == pytest.approx(2 / 3)
    assert task.disagreement(text, [np.array([1.0, math.nan, 3.0])]) == pytest.approx(1 / 3)
    assert task.agreement([np.array([1.0])], [np.array([2.0])]) == {}
    with pytest.raises(IntegrityError, match="2 losses for 3 windows"):
        task.metric([np.array([1.0, 2.0])], counts)
    with pytest.raises(IntegrityError, match="can't be compared"):
        task.disagreement(text, [np.array([1.0])])
    with pytest.raises(IntegrityError, match="one loss for each window"):
        task.metric([*text, *text], counts)
    assert task.wrong_labels(counts, 2, 0) and not task.wrong_labels(counts, 3, 0)


def test_tokens_a_second_turn_the_interval_round() -> None:
    rate = findings.per_second(findings.Bound(10.0, 8.0, 20.0))
    assert (rate.value, rate.low, rate.high) == (100.0, 50.0, 125.0)
    assert findings.per_second(findings.Bound(None, reason="why")).reason == "why"


def test_a_recipe_is_a_form_of_the_weights() -> None:
    assert chain.check("int4", ("onnx",), ExportOptions()).name == "int4"
    assert chain.check("int4:group=64", ("onnx",), ExportOptions()).group == 64
    assert chain.check("none", ("onnx",), ExportOptions()).bits == 32


def test_what_is_mapped_of_the_file_is_given_back_unless_it_was_changed(tiny: Path) -> None:
    lines = [
        "1000-3000 rw-p 00000000 fe:00 12 /a b/model.onnx.data\n", "Rss: 8 kB\n", "Anonymous: 0 kB\n",
        "5000-6000 rw-p 00000000 fe:00 12 /a b/model.onnx.data\n", "Anonymous: 4 kB\n",
        "7000-8000 rw-p 00000000 00:00 0 \n", "Anonymous: 4 kB\n",
        "8000-9000 r--p 00000000 fe:00 13 /usr/lib/libc.so.6\n", "Anonymous: 0 kB\n",
    ]  # fmt: skip
    assert list(_decoder._mapped(lines, "/a b/model.onnx")) == [(0x1000, 0x3000, 0), (0x5000, 0x6000, 4)]
    path = str(files.made(tiny, files.variant("int8"), chain.CONTEXT, Silent()))
    decoder = _decoder.Decoder(path, 1, 8)
    before = decoder.step([5, 6, 7]).copy()
    assert _decoder.let_go(path) > 0
    decoder.forget()
    assert np.array_equal(decoder.step([5, 6, 7]), before)
    assert _decoder.let_go(path + "gone") == 0


def test_a_cache_in_8_bits_is_a_quarter_and_says_nearly_the_same(tiny: Path) -> None:
    paths = [str(files.made(tiny, files.variant(name), chain.CONTEXT, Silent())) for name in ("fp32", "fp32-kv8")]
    text = [
        int(token) for token in chain.evaluation(chain.load(str(tiny), Silent()), "shipped", Silent()).inputs[2][:60]
    ]
    whole, short = (_decoder.Decoder(path, 1, 60) for path in paths)
    for part in (text[:40], text[40:41], text[41:]):
        one, other = whole.step(part)[0], short.step(part)[0]
    assert np.abs(one - other).max() < 0.1 * np.abs(one).max()
    assert {values.dtype for values in short.cached()} == {np.dtype(np.int8)}
    assert whole.cached()[0].shape == short.cached()[0].shape == (kit.SHARED, 60, kit.WIDTH // kit.HEADS)
    losses = [decode.perplexity(path, 1, text, 40, 20) for path in paths]
    assert np.abs(np.subtract(*losses)).max() < 0.2


def test_the_forms_with_a_cache_in_8_bits() -> None:
    assert files.variant("int4-g64-kv8") == files.Variant("int4-g64-kv8", 4, 64, 8)
    assert files.variant("fp32-kv8") == files.Variant("fp32-kv8", 32, 0, 8)
    with pytest.raises(UsageError, match="no such form"):
        files.variant("fp32-g64")
    with pytest.raises(UsageError, match="no such form"):
        files.variant("int4-kv4")


def test_what_the_command_says_of_caches(tiny: Path) -> None:
    from edgepipe.cli import llm as command

    asked = measure.Plan(str(tiny), ("int8", "int8-kv8"), "lee", 200, 40, 20, 8, 14, 1, 1, ask="the t")
    found = measure.measure(asked, Silent())
    one, other = (form["cache_bytes"] for form in found["forms"])
    assert one == 4 * other == 4 * 2 * kit.LAYERS * kit.SHARED * (kit.WIDTH // kit.HEADS)
    assert any(line.startswith("cache of a token: ") for line in command._remarks(found))
