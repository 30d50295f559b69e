"""A TCP proxy on 127.0.0.1 that cuts, freezes and counts: the network's bad days."""

from __future__ import annotations

import asyncio
import threading


class Proxy:
    """``with Proxy(port, cuts=[n, ...])``: the nth connection is cut after that many bytes from the client.

    ``sent`` counts what went from clients to the server. While ``frozen`` nothing is forwarded and nothing closed.
    After the list of cuts is used up connections live on, or are refused if ``then_refuse``.
    """

    def __init__(self, port: int, cuts: list[int] | None = None, then_refuse: bool = False) -> None:
        self.upstream = port
        self.port = 0
        self.sent = 0
        self.connections = 0
        self.frozen = False
        self._cuts = list(cuts or [])
        self._refuse = then_refuse
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        cut = self._cuts.pop(0) if self._cuts else None
        if cut is None and self._refuse and self.connections > 1:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        pair = (writer, up_writer)
        await asyncio.gather(
            self._pump(reader, up_writer, pair, cut, True), self._pump(up_reader, writer, pair, None, False)
        )

    async def _pump(self, source, sink, pair, cut, counted) -> None:
        seen = 0
        try:
            while data := await source.read(65536):
                while self.frozen:
                    await asyncio.sleep(0.02)
                if cut is not None and seen + len(data) >= cut:
                    sink.write(data[: cut - seen])
                    self.sent += cut - seen if counted else 0
                    await sink.drain()
                    break
                seen += len(data)
                self.sent += len(data) if counted else 0
                sink.write(data)
                await sink.drain()
        except (OSError, asyncio.CancelledError):
            pass
        for each in pair:
            each.transport.abort()
