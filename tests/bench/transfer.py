"""What the link costs: a push against `sftp`, a deploy against `rsync -a`, a warm one against `ssh host true`."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

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
    with Sshd() as server:
        ssh = _options(server, folder)
        # Both sides use this one server: starting it is no part of what is compared.
        loopback.open_link = lambda endpoint: _link(server, endpoint)  # type: ignore[assignment,return-value]
        return [_push(server, ssh, folder), _warm(server, ssh), *_against_rsync(server, ssh, folder)]


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
        content = os.urandom(SIZE)
        (source / "model.json").write_bytes(content)
        ref = FileRef("model.json", hashlib.sha256(content).hexdigest(), SIZE)
        artifact = Artifact("null", "model.json", SIZE, 0, ref.sha256, [ref], [], [], Preprocessing())
        return Manifest("noise", artifact, "null")

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
