"""The fleet on a Dask cluster: real processes on loopback, over TLS, some of them killed."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgepipe import fleet
from edgepipe.cli import _fleet_engine
from edgepipe.errors import LinkError, UsageError
from edgepipe.fleet import work
from edgepipe.fleet.engines import Choice, Options, _cluster, _gateway
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Member
from edgepipe.journal import Journal
from edgepipe.schema import Artifact, FileRef, Manifest
from edgepipe.targets import Target
from tests import fleet_kit as kit

pytest.importorskip("distributed")
from tests import dask_kit

LIMITS = Limits(24, 16, replace(kit.HASTY, stall=20.0, grace=10.0))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with dask_kit.Cluster(tmp_path_factory.mktemp("cluster")) as found:
        found.gateway("a")
        found.gateway("b")
        yield found


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")


def boards(root: Path, **sites: int) -> list[Member]:
    return [
        Member(Target(f"{site}{at:03}", link="null", root=str(root)), site)
        for site, count in sites.items()
        for at in range(count)
    ]


def run(members, engine, plan=kit.SHORT, watch=lambda _: None):
    with kit._no_data():
        return fleet.run(kit.request(members, ("none", "fp16"), plan=plan), kit.Silent(), watch, LIMITS, engine)


def results(outcome):
    return {
        (r.board.target, r.recipe, r.artifact.sha256, r.measurement.status, r.release.id if r.release else "")
        for r in outcome.document["reports"]
    }


def of_this_test(cluster):
    ids = {record.id for record in Journal().records("report")}
    return {name: count for name, count in cluster.counts().items() if name in ids}


def test_a_gateway_has_the_boards_of_its_site_alone_and_a_site_without_one_is_told(cluster, tmp_path):
    outcome = run(boards(tmp_path / "boards", a=6, b=6, c=1), cluster.choice)
    states = {board["name"]: board for board in outcome.document["boards"]}
    assert "no gateway serves site c" in states.pop("c000")["reason"]
    assert {board["state"] for board in states.values()} == {"done"}
    assert {name[0] for name in cluster.boards_of(cluster.gateways[0])} == {"a"}
    assert {name[0] for name in cluster.boards_of(cluster.gateways[1])} == {"b"}
    threads = run(boards(tmp_path / "others", a=6, b=6), Choice())
    assert results(threads) == {each for each in results(outcome) if each[0] != "c000"}


def test_a_killed_gateway_loses_nothing_and_nothing_recorded_is_measured_again(cluster, tmp_path):
    doomed = cluster.gateway("a")
    members = boards(tmp_path / "boards", a=16, b=4)

    def watch(_lane):
        if doomed.poll() is None and len(of_this_test(cluster)) >= 8 and cluster.boards_of(doomed):
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()

    outcome = run(members, cluster.choice, kit.short(0.3), watch)
    assert doomed.poll() == -signal.SIGKILL
    assert {board["reason"] for board in outcome.document["boards"]} == {""}
    assert outcome.document["done"] == 40
    assert set(Counter(record.id for record in Journal().records("report")).values()) == {1}
    assert set(of_this_test(cluster).values()) == {1}
    assert results(outcome) == results(run(boards(tmp_path / "others", a=16, b=4), Choice()))


def test_a_killed_host_leaves_nothing_behind_and_a_resume_does_the_rest(cluster, tmp_path):
    members = f"test_fleet_dask.boards(Path({str(tmp_path / 'boards')!r}), a=10, b=10)"
    script = (
        "from pathlib import Path; from edgepipe.fleet.engines import Choice, Options\n"
        f"from tests.unit import test_fleet_dask; from tests import fleet_kit as kit\n"
        f"test_fleet_dask.run({members}, Choice('dask', {cluster.options!r}), kit.short(0.2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    until = time.monotonic() + 240
    while time.monotonic() < until and len(list(Journal().records("report"))) < 10:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recorded = {record.id: record.value["measurement"] for record in Journal().records("report")}
    assert len(recorded) >= 10
    time.sleep(0.5)  # jobs that were at work at a gateway come to their end, and wait on the boards
    with kit._no_data():
        outcome = fleet.resume("", kit.Silent(), lambda _: None, LIMITS, cluster.choice)
    assert outcome.document["done"] == 40
    kept = {record.id: record.value["measurement"] for record in Journal().records("report")}
    assert recorded.items() <= kept.items()
    assert set(Counter(record.id for record in Journal().records("report")).values()) == {1}
    assert set(of_this_test(cluster).values()) == {1}


def test_a_scheduler_that_dies_ends_the_run_and_says_how_to_go_on(tmp_path):
    with dask_kit.Cluster(tmp_path) as own:
        own.gateway("*")

        def watch(_lane):
            if own.counts():
                own.scheduler.kill()

        with pytest.raises(LinkError, match="the scheduler is gone") as error:
            run(boards(tmp_path / "boards", a=6), own.choice, kit.short(0.2), watch)
        assert "fleet resume" in error.value.fix
        assert own.gateways[0].wait(60) == 3
    outcome = kit.resume("")
    assert outcome.document["done"] == 12


def opened(options):
    _cluster.open_client(options).close()


def test_what_is_wrong_with_a_cluster_is_told(cluster, tmp_path, monkeypatch):
    good = cluster.options
    strangers = dask_kit.certificates(tmp_path / "strangers")
    late = dask_kit.certificates(tmp_path / "late", days=-1)
    theirs = {"tls_ca": "ca", "tls_cert": "host", "tls_key": "key"}
    for options, kind, what in (
        (Options(), UsageError, "which scheduler?"),
        (replace(good, scheduler="nonsense"), UsageError, "not the address of a scheduler"),
        (replace(good, scheduler="tcp://192.0.2.1:8786"), UsageError, "is not encrypted"),
        (replace(good, tls_key=""), UsageError, "--tls-key is missing"),
        (replace(good, tls_ca=str(tmp_path / "nowhere")), UsageError, "not a certificate"),
        (replace(good, **{flag: str(late[name]) for flag, name in theirs.items()}), UsageError, "has expired"),
        (replace(good, **{flag: str(strangers[name]) for flag, name in theirs.items()}), LinkError, "no trust"),
        (replace(good, scheduler="tls://127.0.0.1:1"), LinkError, "can't be reached"),
    ):
        with pytest.raises(kind, match=what) as error:
            opened(options)
        assert error.value.fix
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed"):
        opened(good)


def test_the_expired_certificate_of_a_scheduler_is_told(tmp_path):
    late = dask_kit.certificates(tmp_path / "late", days=-1)
    with dask_kit.Cluster(tmp_path, late) as own, pytest.raises(LinkError, match="has expired"):
        asyncio.run(_cluster.probe(own.address, _trust_unchecked(own.options)))


def _trust_unchecked(options):
    import distributed

    files = {"tls_client_cert": options.tls_cert, "tls_client_key": options.tls_key}
    return distributed.Security(tls_ca_file=options.tls_ca, require_encryption=True, **files)


def test_certificates_are_of_no_use_to_threads():
    with pytest.raises(UsageError, match="no scheduler"):
        _fleet_engine.choice("thread", "tls://h:1", "", "", "")


def test_a_gateway_of_another_version_is_refused():
    with pytest.raises(UsageError, match="the host 9"):
        _gateway.enter("x", "9.9")


def test_a_package_lands_at_a_gateway_without_any_file_of_the_host(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(b"weights")
    manifest = Manifest("m", Artifact("null", "", 0, 0, "", [], [], [], None), "null")
    package = work.Package(manifest, [(path, FileRef("sub/m.bin", "0" * 64, 7)), (b"x", "1" * 64)])
    carried = _gateway.carried(package)
    path.unlink()
    landed = _gateway.Landed(carried)
    there = landed.package.files[0][0]
    assert there.read_bytes() == b"weights"
    assert landed.package.files[1] == (b"x", "1" * 64)
    folder = there.parents[1]
    del landed, there
    gc.collect()
    assert not os.path.lexists(folder)
