"""The agent as a board runs it: the zipapp, over pipes, by each Python there is."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepipe import pack

VERSIONS = ("3.8.18", "3.9.18", "3.10.13", "3.11.7", "3.12.1", "3.13.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_life_of_a_release_on_each_python(version, start, tools):
    python = Path.home() / ".pyenv" / "versions" / version / "bin" / "python3"
    if not python.exists():
        pytest.skip(f"Python {version} is not installed")
    agent = start(python=python)
    hello = agent.good("hello", owner="me@host")
    assert hello["board"]["python"] == version and hello["protocol"] == 1 and hello["current"] is None
    manifest, content = tools.null(sleep=0.002)
    agent.push(content)
    first = agent.good("activate", manifest=manifest)
    assert first["id"] == manifest.id and first["changed"] and first["previous"] is None
    run = agent.bench(manifest)
    assert run["runtime"] == "null" and len(run["processes"]) == 2
    for process in run["processes"]:
        assert len(process["samples_ns"]) >= 10 and min(process["samples_ns"]) >= 2_000_000
        assert sum(process["samples_ns"]) >= 0.08e9 and process["memory_peak_bytes"] > 1 << 20
        assert process["warmup_runs"] >= 20 and process["load_ns"] > 0 and process["first_ns"] >= 2_000_000
    assert 0 < run["timer_overhead_ns"] < 20_000
    assert run["states"][0]["at"] < 0.1 and len(run["states"]) >= 2
    assert bool(run["power"]["reason"]) != bool(run["power"]["source"])
    assert {event["phase"] for event in agent.events} & {"warm-up", "measure", "start"}
    second, content = tools.null(name="second")
    agent.push(content)
    assert agent.good("activate", manifest=second)["previous"] == manifest.id
    assert agent.good("rollback")["id"] == manifest.id
    assert agent.good("gc")["releases"] == []
    assert agent.end() == 0


def test_hello_is_quick_and_says_which_agent_runs(agent, pyz):
    agent.good("hello", owner="a@b")
    began = time.monotonic()
    hello = agent.good("hello", owner="a@b")
    assert time.monotonic() - began < 2
    assert hello["agent"] == pyz.stem == pack.agent_zipapp()[1]
    board = hello["board"]
    assert board["cores"] == len(os.sched_getaffinity(0)) and board["ram_bytes"] > 1 << 28
    assert board["arch"] == os.uname().machine and board["cpu"] and board["isa"] and board["os"] and board["libc"]
    found = {runtime["name"]: runtime for runtime in board["runtimes"]}
    assert set(found) >= {"null", "onnxruntime", "openvino", "tflite"}
    import onnxruntime

    assert found["onnxruntime"]["version"] == onnxruntime.__version__


def test_folders_are_private(agent):
    agent.good("hello", owner="a@b")
    for path in [agent.root, *agent.root.iterdir()]:
        assert path.stat().st_mode & 0o777 == 0o700, path


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"nonsense\n", "IntegrityError"),
        (b"\xff\xfe\n", "IntegrityError"),
        (b"[]\n", "IntegrityError"),
        (b"[" * 100_000 + b"\n", "IntegrityError"),
        (b'{"verb": "hello", "args": {}}\n', "IntegrityError"),
        (b'{"verb": "hello", "args": {"owner": 5}}\n', "IntegrityError"),
        (b'{"verb": "hello", "args": {"owner": "a", "more": 1}}\n', "IntegrityError"),
        (b'{"verb": "hello", "args": {"owner": "a"}, "extra": 1}\n', "IntegrityError"),
        (b'{"verb": "reboot", "args": {}}\n', "UsageError"),
        (b'{"verb": ["put"], "args": {}}\n', "UsageError"),
        (b'{"verb": "put", "args": {"sha256": "../../etc/passwd", "size": 1}, "size": 1}\nx', "IntegrityError"),
        (b'{"verb": "get", "args": {"sha256": "' + b"0" * 64 + b'"}}\n', "IntegrityError"),
        (b'{"verb": "status", "args": {"blobs": ["/etc/passwd"]}}\n', "IntegrityError"),
        (b'{"verb": "bench", "args": {"release": "../../../etc", "plan": {}, "options": {}}}\n', "UsageError"),
        (b'{"verb": "site", "args": {"runtime": "../x", "files": []}}\n', "IntegrityError"),
        (b'{"verb": "reboot", "args": {}, "size": 10}\n{"verb": }', "UsageError"),
        (b"x" * (3 << 20) + b"\n", "IntegrityError"),
    ],
)
def test_a_bad_request_is_answered_and_the_next_one_is_served(agent, line, kind):
    agent.raw(line)
    message = agent.reply()
    assert not message["ok"] and message["error"]["kind"] == kind
    assert set(message["error"]) == {"kind", "what", "where", "fix"}
    assert agent.good("status")["current"] is None


def test_a_payload_without_end_closes_the_channel(agent):
    agent.raw(b'{"verb": "put", "args": {}, "size": -1}\n')
    assert "payload" in agent.reply()["error"]["what"]
    assert agent.process.wait(5) == 1


def test_requests_may_be_sent_ahead(agent, tools):
    pieces = [bytes([number]) * 70_000 for number in range(20)]
    whole = b"".join(pieces)
    for number, piece in enumerate(pieces):
        agent.send("put", piece, sha256=tools.sha(whole), size=len(whole), offset=number * 70_000)
    replies = [agent.reply()["result"] for _ in pieces]
    assert [reply["have"] for reply in replies] == [70_000 * (number + 1) for number in range(20)]
    assert replies[-1]["complete"]
    assert agent.ask("get", sha256=tools.sha(whole))["data"] == whole


def test_what_is_printed_does_not_reach_the_channel(start, tmp_path):
    """A print in the agent's own process goes to stderr."""
    script = tmp_path / "loud.py"
    script.write_text(
        "import os, sys\nfrom edgepipe.agent import probe, serve\nown = probe.board\n"
        "def loud(*args):\n    print('shout'); os.write(1, b'roar\\n'); sys.stdout.flush(); return own(*args)\n"
        "probe.board = loud\nsys.exit(serve.main(sys.argv[3]))\n"
    )
    package = Path(pack.__file__).parent.parent
    agent = start(command=["python3", str(script)], env=dict(os.environ, PYTHONPATH=str(package)))
    assert agent.good("hello", owner="x")["protocol"] == 1
    agent.end()
    assert sorted(agent.process.stderr.read().split()) == [b"roar", b"shout"]


def test_the_zipapp_is_small_and_always_the_same():
    content, digest = pack.agent_zipapp()
    again = subprocess.run(
        ["python3", "-c", "from edgepipe import pack; print(pack.agent_zipapp()[1])"],
        cwd=Path(pack.__file__).parent.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.strip() == digest and len(content) <= 120_000


def test_the_zipapp_is_made_once_however_many_ask(monkeypatch):
    made = []
    real = pack.bare
    monkeypatch.setattr(pack, "bare", lambda source: made.append(source) or real(source))
    pack.packed.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: pack.agent_zipapp(), range(16)))
    assert len(set(found)) == 1
    assert len(made) == len(set(made))


def test_an_idle_agent_takes_little_memory(agent):
    agent.good("hello", owner="a@b")
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) <= 25 * 1024


def test_it_reads_a_board_from_another_root(start, tmp_path, tools):
    root = tmp_path / "board"
    files = {
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd crc32\nCPU implementer : 0x41\nCPU part : 0xd08\n\n"
        "processor : 1\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd03\n",
        "proc/meminfo": "MemTotal: 3884424 kB\nMemAvailable: 3000000 kB\n",
        "proc/loadavg": "0.25 0.1 0.0 1/100 5\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-274000\n",
    }
    for cpu in range(2):
        folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq/"
        files.update({folder + "scaling_cur_freq": "1500000\n", folder + "scaling_min_freq": "600000\n"})
        files.update({folder + "scaling_max_freq": "1800000\n", folder + "scaling_governor": "ondemand\n"})
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    agent = start()
    agent.end()
    command = agent.process.args[:2]
    process = subprocess.run(
        [*command, "serve", "--sysfs-root", str(root), "--root", str(tmp_path / "r")],
        input=json.dumps({"verb": "hello", "args": {"owner": "x"}}).encode() + b"\n", capture_output=True, check=True,
    )  # fmt: skip
    board = json.loads(process.stdout)["result"]["board"]
    assert board["cpu"] == "Cortex-A72 + Cortex-A53" and board["isa"] == ["fp", "asimd"]
    assert board["model"].startswith("Raspberry Pi 4") and board["governor"] == "ondemand"
    assert board["ram_bytes"] == 3884424 * 1024 and "bookworm" in board["os"]
    assert board["clocks"] == {"current_khz": [1500000] * 2, "min_khz": [600000] * 2, "max_khz": [1800000] * 2}
    from edgepipe.agent import state

    seen = state.sample(1.0, str(root))
    assert seen.temperature_c == {"cpu-thermal": 48.312} and seen.load1 == 0.25 and seen.clock_khz == [1500000] * 2
