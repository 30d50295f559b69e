"""Dask distributed: jobs run at gateways, workers of a cluster that are near their boards.

A site is a resource that gateways have (``site:NAME``), and each job on a board holds one unit of it: so many boards at
a time. A board stays with one gateway for as long as that is there. When it goes, its jobs fail as those of a lost link
do, and the planner asks the boards anew, through another gateway of the site.
"""

from __future__ import annotations

import asyncio
import pickle
import queue
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import edgepipe
from edgepipe.errors import LinkError
from edgepipe.fleet.engines import Options, _cluster, _gateway
from edgepipe.fleet.work import Package

_LOOK = 0.5  # s between looks at which gateways are there
_ANSWER = 30  # s a busy scheduler may take for an answer


@dataclass(eq=False)
class _Order:
    """A job on a board; ``task`` is the cluster's future of it."""

    board: str
    site: str
    content: bytes
    package: Package | None
    future: Future[Any] = field(default_factory=Future)
    task: Any = None

    def end(self, result: Any) -> None:
        """It is done; once only, for a gateway may be given up on while its last result is under way."""
        self.task = None
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """It failed."""
        self.task = None
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(eq=False)
class _Gateway:
    """A worker that has sites, with what this fleet has there. ``slots``: boards at a time, by resource."""

    address: str
    name: str
    slots: dict[str, float]
    session: Any
    landed: dict[int, Any] = field(default_factory=dict)
    boards: set[str] = field(default_factory=set)
    orders: set[_Order] = field(default_factory=set)

    def resource(self, site: str) -> str:
        """What a job on a board of a site holds here; empty where the site is not served."""
        names = (_gateway.SITE + site, _gateway.SITE + _gateway.ANY)
        return next((name for name in names if self.slots.get(name)), "")


class Desk(Executor):
    """Where the jobs of one board are handed in."""

    def __init__(self, engine: DaskEngine, board: str, site: str) -> None:
        self._engine, self._board, self._site = engine, board, site

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand in ``fn(where, *args)``; a package among the arguments must be the first after ``where``.

        Raises:
            LinkError: the scheduler is gone.
        """
        assert not kwargs
        return self._engine.order(self._board, self._site, fn, args)


class DaskEngine:
    """The planner's thread hands in orders; one other thread talks to the cluster, many orders at a time."""

    def __init__(self, client: Any, where: str) -> None:
        self._client, self._where = client, where
        self._name = uuid.uuid4().hex
        self._gateways: dict[str, _Gateway] = {}
        self._at: dict[str, _Gateway] = {}
        self._packages: dict[int, tuple[Package, Package]] = {}
        self._inbox: queue.SimpleQueue[_Order | str | None] = queue.SimpleQueue()
        self._lost: LinkError | None = None
        self._look()
        self._thread = threading.Thread(target=self._serve, name="edgepipe-dask", daemon=True)
        self._thread.start()

    # The planner's side

    def executor(self, board: str, site: str) -> Executor:
        """The desk of a board."""
        return Desk(self, board, site)

    def share(self, value: Package) -> Package:
        """Read a package's files once; each gateway is sent them once."""
        if id(value) not in self._packages:
            self._packages[id(value)] = value, _gateway.carried(value)
        return value

    def order(self, board: str, site: str, job: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        """Take an order in."""
        if self._lost:
            raise self._lost
        where, *rest = args
        package = rest.pop(0) if rest and isinstance(rest[0], Package) else None
        if package is not None:
            self.share(package)
        order = _Order(board, site, pickle.dumps((job, where, tuple(rest))), package)
        self._inbox.put(order)
        return order.future

    def abandon(self, board: str) -> None:
        """Have the board's connection closed at its gateway."""
        self._inbox.put(board)

    def close(self) -> None:
        """Leave the cluster, which drops all that was held for this fleet."""
        self._inbox.put(None)
        self._thread.join(_ANSWER)
        with suppress(Exception):
            self._client.close(timeout=5)

    # The cluster's side

    def _serve(self) -> None:
        looked = time.monotonic()
        try:
            while True:
                found = self._taken()
                orders = [each for each in found if isinstance(each, _Order)]
                if self._lost is None and time.monotonic() > looked + _LOOK:
                    self._look()
                    looked = time.monotonic()
                for name in (each for each in found if isinstance(each, str)):
                    self._hang_up(name)
                self._send(orders)
                if None in found:
                    return
        except Exception as error:  # else the planner would wait for ever
            self._lose(error)

    def _taken(self) -> list[_Order | str | None]:
        """All that lies in the inbox, after a wait for something."""
        found: list[_Order | str | None] = []
        try:
            found.append(self._inbox.get(timeout=_LOOK))
            while True:
                found.append(self._inbox.get_nowait())
        except queue.Empty:
            return found

    def _look(self) -> None:
        """See which gateways are there; the orders of one that is gone fail."""
        if self._client.status != "running":  # with the connection the scheduler drops all that it did for us
            self._lose(OSError("the connection was closed"))
            return
        try:
            workers = self._client.sync(self._client.scheduler.identity, callback_timeout=_ANSWER)["workers"]
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            self._lose(error)
            return
        for address, gateway in list(self._gateways.items()):
            gateway.orders = {order for order in gateway.orders if not order.future.done()}
            if address not in workers or gateway.session.status in ("cancelled", "lost"):
                self._drop(gateway)
        for address, facts in workers.items():
            slots = {name: each for name, each in facts["resources"].items() if name.startswith(_gateway.SITE)}
            if slots and address not in self._gateways:
                session = self._client.submit(
                    _gateway.enter, self._name, edgepipe.__version__, workers=[address], pure=False
                )
                self._gateways[address] = _Gateway(address, str(facts["name"]), slots, session)

    def _drop(self, gateway: _Gateway) -> None:
        del self._gateways[gateway.address]
        for board in gateway.boards:
            self._at.pop(board, None)
        for order in gateway.orders:
            order.fail(LinkError(f"gateway {gateway.name} was lost", gateway.address, "start it again"))

    def _lose(self, error: BaseException) -> None:
        """The scheduler is gone: this run ends, and another one goes on with it."""
        self._lost = _cluster.lost(error, self._where)
        while self._gateways:
            for order in self._gateways.popitem()[1].orders:
                order.fail(self._lost)

    def _hang_up(self, board: str) -> None:
        gateway = self._at.pop(board, None)
        if gateway is None:
            return
        gateway.boards.discard(board)
        call = self._client._run(_gateway.hang_up, self._name, [board], workers=[gateway.address])
        asyncio.run_coroutine_threadsafe(call, self._client.loop.asyncio_loop)

    def _send(self, orders: list[_Order]) -> None:
        """Hand orders over to the cluster, those of a gateway together."""
        groups: defaultdict[tuple[str, str], list[_Order]] = defaultdict(list)
        for order in orders:
            gateway = self._gateway(order.board, order.site)
            if gateway:
                groups[gateway.address, gateway.resource(order.site)].append(order)
                continue
            fix = f"edgepipe fleet gateway --site {order.site} --scheduler {self._where}"
            order.fail(self._lost or LinkError(f"no gateway serves site {order.site}", self._where, fix))
        for (address, resource), found in groups.items():
            gateway = self._gateways[address]
            tasks = self._client.map(
                _gateway.act, [gateway.session] * len(found), [self._landed(gateway, order) for order in found],
                [order.content for order in found], workers=[address], resources={resource: 1}, pure=False,
                key="edgepipe",
            )  # fmt: skip
            for order, task in zip(found, tasks, strict=True):
                order.task = task
                gateway.orders.add(order)
                self._client.loop.add_callback(_take, order, task)

    def _gateway(self, board: str, site: str) -> _Gateway | None:
        """The gateway of a board: the one it had, else the one with the fewest boards; its site's own go first."""
        found = self._at.get(board)
        if found is None:
            there = [gateway for gateway in self._gateways.values() if gateway.resource(site)]
            own = [gateway for gateway in there if _gateway.SITE + site in gateway.slots]
            found = min(own or there, key=lambda each: len(each.boards), default=None)
            if found:
                self._at[board] = found
                found.boards.add(board)
        return found

    def _landed(self, gateway: _Gateway, order: _Order) -> Any:
        """An order's package as its gateway holds it; None where it has none."""
        if order.package is None:
            return None
        key = id(order.package)
        if key not in gateway.landed:
            carried = self._packages[key][1]
            gateway.landed[key] = self._client.submit(
                _gateway.Landed, carried, workers=[gateway.address], pure=False, key=f"package-{uuid.uuid4().hex}"
            )
        return gateway.landed[key]


async def _take(order: _Order, task: Any) -> None:
    """Pass on what came of an order."""
    result = await task._result(raiseit=False)
    if task.status == "finished":
        order.end(result)
    elif task.status == "error":
        order.fail(result[1])
    else:
        order.fail(LinkError("the cluster has dropped this job", "the scheduler", "it is asked again"))


def open_engine(options: Options) -> DaskEngine:
    """Join the cluster.

    Raises:
        UsageError: no Dask, scheduler or certificate. LinkError: the scheduler can't be reached.
    """
    client = _cluster.open_client(options)
    engine = DaskEngine(client, client.scheduler.address)
    if engine._lost:
        raise engine._lost
    return engine
