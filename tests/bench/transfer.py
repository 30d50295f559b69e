"""What the link costs: a push against `sftp`, a deploy against `rsync -a`, a warm one against `ssh host true`.

And what a new version of a file costs against the whole, with what rsync's own delta takes beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgepipe import bench, board, export, model, targets
from edgepipe.artifact import ExportOptions
from edgepipe.link import Endpoint, loopback
from edgepipe.link.loopback import Sshd
from edgepipe.link.ssh import SshLink, connect
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, FileRef, Manifest, Preprocessing
from tests.bench.figure import Figure, at_least, at_most, interleaved, missing, seconds

ROUNDS, SIZE = 7, 50_000_000


def figures(folder: Path) -> list[Figure]:
    """Throughput of a push over that of sftp; a warm deploy's link time over ssh's own start."""
    if not shutil.which("sftp"):
        return [missing("push / sftp", "no OpenSSH client on this machine")]
    with _server() as server:
        ssh = _options(server, folder)
        found = [_push(server, ssh, folder), _warm(server, ssh), *_against_rsync(server, ssh, folder)]
        return [*found, *_deltas(server, ssh, folder)]


def push_figure(folder: Path) -> Figure:
    """Throughput of a push over that of sftp, alone; needs OpenSSH's client and server."""
    with _server() as server:
        return _push(server, _options(server, folder), folder)


@contextmanager
def _server() -> Iterator[Sshd]:
    """One server for both sides: starting it is no part of what is compared."""
    before = loopback.open_link
    with Sshd() as server:
        loopback.open_link = lambda endpoint: _link(server, endpoint)  # type: ignore[assignment,return-value]
        try:
            yield server
        finally:
            loopback.open_link = before


def _link(server: Sshd, endpoint: Endpoint) -> SshLink:
    link = SshLink(
        connect([server.hop()], "loopback", host_key=server.host_key, key=server.client_key), [server.hop()], endpoint
    )
    link.python = sys.executable
    return link


def _options(server: Sshd, folder: Path) -> list[str]:
    known = folder / "known_hosts"
    kind, key = (server.folder / "host_key.pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    options = {"IdentityFile": server.folder / "client_key", "UserKnownHostsFile": known, "IdentitiesOnly": "yes"}
    return ["-F", "none", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]


def _push(server: Sshd, ssh: list[str], folder: Path) -> Figure:
    """Both send the same 50 MB of noise over a connection of their own; each side's connecting is taken off."""
    file = folder / "noise"
    host = "127.0.0.1"
    batch_put, batch_none = folder / "put", folder / "none"
    batch_put.write_text(f"put {file} {folder / 'received'}\n")
    batch_none.write_text("pwd\n")

    content = os.urandom(SIZE)
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()

    def sftp() -> float:
        os.sync()  # so that neither side waits for what the other one wrote
        base = ["sftp", "-q", "-P", str(server.port), *ssh]
        whole = seconds([*base, "-b", str(batch_put), host])
        return whole - seconds([*base, "-b", str(batch_none), host])

    def push() -> float:
        os.sync()
        with board.connect(targets.load("loopback"), bench.owner(), Silent()) as client:
            started = time.perf_counter()
            assert client.push([(file, digest)]) >= SIZE
            spent = time.perf_counter() - started
            client.gc()
            return spent

    ours, theirs, _ = interleaved(push, sftp, ROUNDS)
    rates = SIZE / ours / 1e6, SIZE / theirs / 1e6
    return at_least(
        "push / sftp throughput, 50 MB", rates[0] / rates[1], 0.9, "x", f"({rates[0]:.0f} / {rates[1]:.0f} MB/s)"
    )


def _warm(server: Sshd, ssh: list[str]) -> Figure:
    """Connect, hello, ask for blobs that are there, activate what is active; against a login that does nothing."""
    source = model.load("fashion-resnet8")
    artifact = export.make(source, "none", "null", ExportOptions(), Silent()).artifact
    manifest = bench.manifest_of(artifact)

    def deploy() -> float:
        started = time.perf_counter()
        with board.connect(targets.load("loopback"), bench.owner(), Silent()) as client:
            client.push(bench.files_of(artifact))
            client.activate(manifest)
            return time.perf_counter() - started

    def login() -> float:
        return seconds(["ssh", "-p", str(server.port), *ssh, "127.0.0.1", "true"])

    deploy()  # the cold one
    ours, theirs, ratio = interleaved(deploy, login, ROUNDS)
    return at_most("warm deploy's link / ssh host true", ratio, 1.5, "x", f"({ours * 1e3:.0f} / {theirs * 1e3:.0f} ms)")


def _against_rsync(server: Sshd, ssh: list[str], folder: Path) -> list[Figure]:
    """A whole deploy of a folder (connect, start the agent, push, stage, activate) and `rsync -a` of the same folder.

    Cold, both send 50 MB of noise to a board that has none of it (the agent is there already, as rsync is). Warm, both
    find that there is nothing to do. rsync does not flush to the disk and the deploy does, so both are timed with a
    sync of the whole disk before, and rsync's cold run with one after, which is what a release costs at least.
    """
    names = [f"deploy / rsync -a, {kind}" for kind in ("cold 50 MB", "warm")]
    if not shutil.which("rsync"):
        return [missing(name, "no rsync on this machine (apt-get install rsync)") for name in names]
    source, there = folder / "release", folder / "there"
    source.mkdir()
    remote = ["rsync", "-a", "-e", " ".join(["ssh", "-p", str(server.port), *ssh]), f"{source}/", f"127.0.0.1:{there}/"]

    def fresh() -> Manifest:
        """A release nobody has: one file of noise."""
        return _release(source, os.urandom(SIZE))

    def deploy(manifest: Manifest) -> float:
        os.sync()
        started = time.perf_counter()
        with board.connect(targets.load("loopback"), bench.owner(), Silent()) as client:
            client.push([(source / "model.json", manifest.artifact.files[0])])
            assert client.activate(manifest).id == manifest.id
            spent = time.perf_counter() - started
            client.gc()
        return spent

    def rsync(*, flush: bool) -> float:
        os.sync()
        started = time.perf_counter()
        seconds(remote)
        if flush:
            seconds(["sync", "-f", str(there)])
        return time.perf_counter() - started

    def cold_rsync() -> float:
        shutil.rmtree(there, ignore_errors=True)
        return rsync(flush=True)

    ours, theirs, ratio = interleaved(lambda: deploy(fresh()), cold_rsync, ROUNDS)
    cold = at_most(names[0], ratio, 1.1, "x", f"({ours * 1e3:.0f} / {theirs * 1e3:.0f} ms)")
    last = fresh()
    deploy(last), cold_rsync()
    ours, theirs, ratio = interleaved(lambda: deploy(last), lambda: rsync(flush=False), 3 * ROUNDS)
    return [cold, at_most(names[1], ratio, 1.5, "x", f"({ours * 1e3:.0f} / {theirs * 1e3:.0f} ms)")]


def _release(folder: Path, content: bytes) -> Manifest:
    """A release of one file, written to ``folder``."""
    (folder / "model.json").write_bytes(content)
    ref = FileRef("model.json", hashlib.sha256(content).hexdigest(), len(content))
    artifact = Artifact("null", "model.json", ref.bytes, 0, ref.sha256, [ref], [], [], Preprocessing())
    return Manifest("noise", artifact, "null")


def _deltas(server: Sshd, ssh: list[str], folder: Path) -> list[Figure]:
    """Bytes on the way for a second version of 20 MB of weights over those of the packed whole; `rsync -az` beside.

    Floats of which the last layer, 1 %, was trained anew; and int8 weights of which 5 %, anywhere, moved by one.
    """
    random = np.random.default_rng(0)
    floats = random.normal(size=SIZE // 10).astype(np.float32)
    trained = floats.copy()
    trained[-len(floats) // 100 :] += random.normal(size=len(floats) // 100).astype(np.float32) / 100
    rounded = np.clip(random.normal(size=SIZE * 4 // 10) * 40, -127, 127).astype(np.int8)
    moved = rounded.copy()
    moved[random.random(len(moved)) < 0.05] ^= 1
    found = []
    for name, old, new in (("a layer trained anew", floats, trained), ("5 % of int8 weights moved", rounded, moved)):
        whole, sent = _second(folder, old.tobytes(), new.tobytes())
        theirs = _rsynced(server, ssh, folder, old.tobytes(), new.tobytes())
        beside = f"rsync -az {theirs:,}" if theirs else "no rsync on this machine"
        found.append(at_most(f"delta / whole, {name}", sent / whole, 0.5, "x", f"({sent:,} / {whole:,} B; {beside})"))
    return found


def _second(folder: Path, old: bytes, new: bytes) -> tuple[int, int]:
    """What the whole of the second version would take, packed, and what was sent of it."""
    with board.connect(targets.load("loopback"), bench.owner(), Silent()) as client:
        for content in (old, new):
            before, manifest = client.bytes_wire, _release(folder, content)
            client.push([(folder / "model.json", manifest.artifact.files[0])])
            client.activate(manifest)
            assert client.get(manifest.artifact.sha256) == content
        sent = client.bytes_wire - before
        return sum(one.bytes_wire + one.bytes_saved for one in client.deltas) or sent, sent


def _rsynced(server: Sshd, ssh: list[str], folder: Path, old: bytes, new: bytes) -> int:
    """Bytes both ways of an rsync onto the old version; 0 without rsync."""
    if not shutil.which("rsync"):
        return 0
    source, there = folder / "version", folder / "onto"
    there.mkdir(exist_ok=True)
    (there / "version").write_bytes(old)
    source.write_bytes(new)
    shell = " ".join(["ssh", "-p", str(server.port), *ssh])
    command = ["rsync", "-az", "--ignore-times", "--stats", "-e", shell, str(source), f"127.0.0.1:{there}/"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (there / "version").read_bytes() == new
    return sum(int(number.replace(",", "")) for number in re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said))
