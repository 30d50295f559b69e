"""Every plug-in that the folders hold, found by walking them: a new file is under test the moment it exists."""

import inspect

import pytest

from edgepipe import plugins, recipe
from edgepipe.errors import UsageError
from tests.unit import formats_kit as kit


def parts(part):
    found = []
    for name in plugins.names("formats"):
        try:
            found.append((name, plugins.load("formats", name, part)))
        except UsageError:
            continue
    return found


def names_of(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(("name", "module"), parts("export"), ids=lambda value: value if isinstance(value, str) else "")
def test_export_parts(name, module):
    assert names_of(module.export) == ["model", "source", "folder", "options", "call"]
    assert isinstance(module.LIBRARIES, tuple)
    fields = {"batch", "dynamic", "opset", "ir_version", "reduce_range", "threads"}
    assert set(module.OPTIONS) <= fields
    known = {other for part in ("export", "load") for other, _ in parts(part)}
    assert set(module.SOURCES) <= {"", *known} - {name}
    assert not set(getattr(module, "WHY_NOT", {})) & set(module.SOURCES)
    assert module.__doc__
    assert module.export.__doc__


@pytest.mark.parametrize(("name", "module"), parts("adapt"), ids=lambda value: value if isinstance(value, str) else "")
def test_adapt_parts(name, module):
    assert names_of(module.adapt) == ["source", "folder", "options", "call"]
    assert isinstance(module.LIBRARIES, tuple)
    assert module.adapt.__doc__


@pytest.mark.parametrize(("name", "module"), parts("load"), ids=lambda value: value if isinstance(value, str) else "")
def test_load_parts(name, module):
    assert names_of(module.load) == ["path", "card"]
    assert all(suffix.startswith(".") for suffix in module.EXTENSIONS)


def test_a_suffix_has_one_format():
    suffixes = [suffix for _, module in parts("load") for suffix in module.EXTENSIONS]
    assert len(suffixes) == len(set(suffixes))


@pytest.mark.parametrize(
    ("name", "module"), parts("quantize"), ids=lambda value: value if isinstance(value, str) else ""
)
def test_quantize_parts(name, module):
    assert set(module.STEPS) == set(module.DEFAULTS)
    assert set(module.NEEDS_DATA) <= set(module.STEPS)
    for step, line in module.STEPS.items():
        assert line
        assert "\n" not in line
        assert step not in recipe.network_steps()
        assert not module.DEFAULTS[step] or step not in module.NEEDS_DATA or "samples" in module.DEFAULTS[step]
        recipe.plan(recipe.parse(step), name)
    assert names_of(module.quantize) == ["source", "step", "params", "calibration", "folder", "options", "call"]


@pytest.mark.parametrize("name", plugins.names("compress"))
def test_compress_parts(name):
    module = plugins.load("compress", name)
    assert recipe.network_steps()[module.STEP] is module
    assert module.HELP
    assert "\n" not in module.HELP
    assert isinstance(module.LIBRARIES, tuple)
    assert module.needs(module.DEFAULTS) in ("", "calibration", "training")
    assert set(getattr(module, "CHOICES", {})) <= set(module.DEFAULTS)
    assert set(getattr(module, "LIMITS", {})) <= set(module.DEFAULTS)
    assert all(module.DEFAULTS[key] in words for key, words in getattr(module, "CHOICES", {}).items())
    assert set(getattr(module, "UNDOES", {})) <= set(recipe.network_steps())
    assert getattr(module, "THEN", "int8") in recipe.file_steps()
    assert names_of(module.compress) == ["network", "params", "context"]


def made_of_torch():
    """Formats that there is a way to from a torch module."""
    sources = {name: set(module.SOURCES) for name, module in parts("export")}
    found = {""}
    while more := {name for name, able in sources.items() if name not in found and able & found}:
        found |= more
    return sorted(found - {""})


@pytest.mark.parametrize("name", made_of_torch())
def test_every_format_exports(name, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))
    found = kit.made(name).artifact
    assert found.format == name
    assert found.bytes > 0
    assert found.bytes_gzip > 0
    assert found.inputs[0].shape[0] == 1
    assert kit.made(name).steps[0].name == "export"


def test_plug_ins_are_light():
    """Listing recipes must not cost the import of a converter."""
    import subprocess
    import sys

    code = (
        "import sys; from edgepipe import recipe, export; recipe.known(); export.formats();"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'litert_torch', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
