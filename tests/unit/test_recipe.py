import pytest

from edgepipe import recipe
from edgepipe.errors import UsageError


def test_steps_and_canonical_form():
    parsed = recipe.parse(" null + int8:samples=64,percentile ")
    assert [part.name for part in parsed.parts] == ["null", "int8"]
    assert str(parsed) == "null+int8:percentile,samples=64"
    assert recipe.parse(str(parsed)) == parsed


def test_none_is_the_baseline():
    assert recipe.parse("none").parts == ()
    assert str(recipe.parse("none")) == "none"


def test_plan_splits_network_and_file():
    plan = recipe.plan(recipe.parse("null+int8:percentile,samples=64"), "onnx")
    assert [action.name for action in plan.network] == ["null"]
    assert [action.name for action in plan.file] == ["int8"]
    assert plan.file[0].params["method"] == "percentile"
    assert plan.file[0].params["samples"] == 64
    assert plan.file[0].needs == "calibration"
    assert plan.file[0].given == {"method", "samples"}
    assert plan.network[0].needs == ""


def test_defaults_are_filled_in_and_not_shared():
    one = recipe.plan(recipe.parse("int8"), "onnx").file[0].params
    one["samples"] = 1
    assert recipe.plan(recipe.parse("int8"), "onnx").file[0].params["samples"] == 256


def test_a_bare_word_goes_to_the_parameter_whose_choice_it_is():
    for text in ("int8:w8a16,percentile", "int8:percentile,w8a16", "int8:scheme=w8a16,method=percentile"):
        found = recipe.plan(recipe.parse(text), "onnx").file[0]
        assert (found.params["scheme"], found.params["method"]) == ("w8a16", "percentile")
    assert recipe.plan(recipe.parse("sparse:2:4"), "onnx").network[0].params["pattern"] == "2:4"
    assert recipe.plan(recipe.parse("sparse:0.5,layer"), "onnx").network[0].params["amount"] == 0.5


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("int7", "no such recipe step: int7"),
        ("int8+null", "null changes the network, but int8"),
        ("int8+int8", "int8 can't follow int8"),
        ("fp16+int8", "int8 can't follow fp16"),
        ("int8+dynamic", "dynamic can't follow int8"),
        ("none+int8", "stands alone"),
        ("int8+none", "stands alone"),
        ("none:1", "stands alone"),
        ("", "is not a step"),
        ("int8+", "is not a step"),
        ("INT8", "is not a step"),
        ("int8:", "can't be read"),
        ("int8:samples=1,samples=2", "can't be read"),
        ("int8:samples=", "can't be read"),
        ("int8:samples=../x", "can't be read"),
        ("../../etc/passwd", "is not a step"),
    ],
)
def test_refusals_say_why(text, what):
    with pytest.raises(UsageError) as caught:
        recipe.parse(text)
    assert what in caught.value.what
    assert caught.value.where
    assert caught.value.fix


def test_near_names():
    with pytest.raises(UsageError) as caught:
        recipe.parse("dinamic")
    assert "did you mean dynamic" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "format_name", "what"),
    [
        ("int8", "torch", "torch can't int8"),
        ("fp16:3", "onnx", "takes no value"),
        ("fp16:x=3", "onnx", "takes no parameters"),
        ("int8:sample=64", "onnx", "no such parameter of int8: sample"),
        ("int8:samples=lots", "onnx", "whole number"),
        ("int8:samples=0", "onnx", "1 or more"),
        ("int8:samples=1.5", "onnx", "whole number"),
        ("null:0.5", "onnx", "takes no value"),
        ("int8:minmax,percentile", "onnx", "given twice"),
        ("int8:bogus", "null", "samples must be a whole number"),
    ],
)
def test_plan_refusals(text, format_name, what):
    with pytest.raises(UsageError) as caught:
        recipe.plan(recipe.parse(text), format_name)
    assert what in caught.value.what


def test_toml_file_says_the_same(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[[step]]\nname = "null"\n[[step]]\nname = "int8"\nsamples = 64\n')
    assert str(recipe.parse(str(path))) == "null+int8:samples=64"


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "x = 1\n",
        "step = 3\n",
        "[[step]]\nsamples = 3\n",
        '[[step]]\nname = "int8"\nsamples = [1]\n',
        '[[step]]\nname = "int8"\nmethod = "a b"\n',
        "",
        "step = []\n",
    ],
)
def test_bad_toml_files(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        recipe.parse(str(path))


def test_missing_toml_file(tmp_path):
    with pytest.raises(UsageError, match="no such recipe file"):
        recipe.parse(str(tmp_path / "none.toml"))


def test_known_has_a_line_for_each():
    lines = recipe.known()
    assert {"none", "fp16", "dynamic", "int8"} <= set(lines)
    assert all(lines.values())


def test_recipes_that_need_no_data():
    assert recipe.without_data("onnx") == ["none", "fp16", "dynamic", "int8w", "int4"]
