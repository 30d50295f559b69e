from __future__ import annotations

import pytest

from edgepipe import paths, targets
from edgepipe.errors import UsageError

SHIPPED = [
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-xavier-nx",
    "local",
    "loopback",
    "rpi3",
    "rpi4",
    "rpi5",
    "rpizero2w",
    "x86-mini",
]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "data"))


def test_all_ten_are_shipped():
    assert targets.listing() == SHIPPED


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("local", "loopback")])
def test_a_shipped_board_is_complete_and_sourced(name):
    target = targets.load(name)
    assert target.link == "ssh" and not target.host and target.sources and target.description
    assert target.arch in ("aarch64", "armv7l", "x86_64") and target.hardware.isa and target.hardware.cores > 1
    assert {"onnxruntime", "tflite", "openvino"} == set(target.runtimes)
    assert target.opset and target.ir_version
    assert bool(target.meter.name) != bool(target.meter.reason)
    with pytest.raises(UsageError) as caught:
        target.endpoint()
    assert "--host pi@raspberrypi.local" in caught.value.fix and f"--like {name}" in caught.value.fix


def test_host_takes_its_place():
    assert targets.load("rpi4", "pi@[fe80::1]:2222").endpoint().address == targets.Address("fe80::1", "pi", 2222)
    with pytest.raises(UsageError, match="always on this machine"):
        targets.load("loopback", "pi@host")


def test_near_names_are_given():
    with pytest.raises(UsageError) as caught:
        targets.load("rpi44")
    assert "rpi4" in caught.value.fix


def test_own_target_goes_first_and_inherits():
    path = targets.add("kitchen", "rpi5", "pi@kitchen.local")
    assert path.parent == paths.config_home() / "targets"
    target = targets.load("kitchen")
    assert target.host == "pi@kitchen.local" and target.hardware.cpu == "Cortex-A76" and target.name == "kitchen"
    assert targets.listing()[0] == "kitchen"
    with pytest.raises(UsageError, match="exists already"):
        targets.add("kitchen", "rpi5", "pi@kitchen.local")


def test_an_own_target_keeps_the_key_to_log_in_with(tmp_path):
    with pytest.raises(UsageError, match="no such key file"):
        targets.add("kitchen", "rpi5", "pi@kitchen.local", str(tmp_path / "id"))
    (tmp_path / "id").write_text("")
    targets.add("kitchen", "rpi5", "pi@kitchen.local", str(tmp_path / "id"))
    assert targets.load("kitchen").endpoint().identity == str(tmp_path / "id")


def test_tables_are_merged_key_by_key(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "rpi4.toml").write_text('like = "base"\n[hardware]\nram_mb = [2048]\n')
    (tmp_path / "targets" / "base.toml").write_text('link = "ssh"\n[hardware]\ncpu = "X"\nram_mb = [1]\n')
    assert targets.load("rpi4").hardware == targets.Hardware(cpu="X", ram_mb=[2048])


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ('discription = "x"', "unknown key 'discription'", "did you mean description?"),
        ("[hardware]\ncpus = 1", "unknown key 'cpus'", "did you mean cpu?"),
        ('[runtimes]\ntflite = { versoin = "1" }', "unknown key 'versoin'", "did you mean version?"),
        ('[runtimes]\ntflite = { version = "1", reason = "no" }', "either a version or a reason", "give one"),
        ('link = "telnet"', "no such link: telnet", "local"),
        ('link = "pins"', "no such link: pins", "known"),
        ('[hardware]\ncores = "four"', "expected int", "correct"),
        ("[limits]\nthrottle_c = nan", "expected a finite number", "correct"),
        ('host = "-oProxyCommand=x"', "not an address", "user"),
        ('like = "mine"', "like each other", "correct"),
        ('name = "x"', "name of its file", "remove"),
        ("cores =", "not a TOML file", "correct"),
    ],
)
def test_mistakes_are_named(text, what, fix, tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=what) as caught:
        targets.load("mine")
    assert fix in caught.value.fix
