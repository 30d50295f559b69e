"""Every power meter that the two folders hold, found by walking them: a new file is under test the moment it exists."""

import inspect
import re
from pathlib import Path

import pytest

from edgepipe import plugins, targets
from edgepipe.agent import meters
from edgepipe.agent.meters import NoMeterError
from edgepipe.errors import UsageError
from edgepipe.meters import Settings

ROOT = Path(meters.__file__).parents[3]
PAGE = (ROOT / "docs" / "meters.md").read_text()
PUBLIC = {"find"}


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", meters.names())
def test_meters_on_the_board(name, tmp_path):
    module = meters.load(name)
    assert parameters(module.find) == ["sysfs_root", "rail"]
    assert module.__doc__ and module.find.__doc__ and "NoMeterError" in module.find.__doc__
    with pytest.raises(NoMeterError) as caught:
        module.find(str(tmp_path), "")
    assert caught.value.what and not caught.value.present
    assert own(module) <= PUBLIC, "find is all that a meter gives"


@pytest.mark.parametrize("name", plugins.names("meters"))
def test_meters_of_the_host(name):
    module = plugins.load("meters", name)
    assert parameters(module.find)[0] == "settings"
    assert all(parameter.default is not inspect.Parameter.empty for parameter in rest(module.find))
    assert module.__doc__ and module.find.__doc__
    assert all(isinstance(text, str) and text for text in module.OPTIONS.values())
    assert not set(module.OPTIONS) & {*targets.METER_OPTIONS, "password"}
    with pytest.raises((UsageError, NoMeterError)):
        module.find(Settings())


def rest(function):
    return list(inspect.signature(function).parameters.values())[1:]


def own(module):
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name for name, function in functions if function.__module__ == module.__name__ and name[0] != "_"}


def test_a_name_is_one_meter():
    assert set(meters.names()) & set(plugins.names("meters")) == {"null"}
    assert "host" not in meters.names()


@pytest.mark.parametrize("name", sorted({*meters.names(), *plugins.names("meters")} - {"null"}))
def test_the_page_says_what_each_meter_has_met(name):
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1 and re.search(r"tested on (built trees|small servers|a pseudo-terminal|recordings)", rows[0])


@pytest.mark.parametrize("name", plugins.names("meters"))
def test_the_page_names_every_option(name):
    for option in plugins.load("meters", name).OPTIONS:
        assert f"`{option}`" in PAGE, option


def test_listing_meters_is_light():
    import subprocess
    import sys

    code = (
        "import sys; from edgepipe import plugins, targets;"
        "[plugins.load('meters', name) for name in plugins.names('meters')]; targets.load('rpi5');"
        "print(sorted({'paho', 'numpy', 'paramiko', 'urllib3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
