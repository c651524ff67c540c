"""A gate between the worker and Vault: it spreads connections, and delays, stops or cuts what passes."""

import asyncio
import re
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

from tests.integration.servers import Server, forget, request, reset

Moment = Literal["before", "after"]
"""Before a request is passed on to Vault, or after Vault has done it and before the client gets the answer."""

_DATE = re.compile(rb"Date: ([^\r]+)")


@dataclass
class HeldRequest:
    """A request that waits at the gate for a decision."""

    what: re.Pattern[str]
    moment: Moment
    every: bool = False
    """Not the next one alone."""
    caught: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _goes_on: bool = False

    def release(self) -> None:
        self._goes_on = True
        self._released.set()

    def drop(self) -> None:
        """Abandon the request, as if its client had disconnected: it is not done, or its answer is not sent."""
        self._released.set()

    async def wait(self) -> None:
        """Wait for the decision; raise ConnectionAbortedError if it is to drop the request."""
        self.caught.set()
        while not self._released.is_set():  # noqa: ASYNC110 - set from another thread
            await asyncio.sleep(0.01)
        if not self._goes_on:
            raise ConnectionAbortedError


@dataclass(frozen=True)
class Passed:
    what: str
    """Method and path."""
    status: int


class Gate(Server):
    """A server that speaks plain HTTP on both sides. Each new connection is bound to the next Vault that accepts it."""

    def __init__(self, vaults: Sequence[str]) -> None:
        super().__init__(self._carry)
        self.lead_to(vaults)
        self._turn = 0
        self.by_health = False
        """Send new connections only to Vaults whose health check passes."""
        self.no_route: bytes | None = None
        """The gate's answer to every request, in place of Vault's."""
        self._forgotten: set[StreamWriter] = set()
        self.resets = 0
        self.delay = 0.0
        """Seconds by which each answer is delayed."""
        self.behind = timedelta()
        """Lag of the clock in each answer."""
        self.cuts = False
        """Cut each answer in the middle."""
        self.passed: list[Passed] = []
        self._holding: HeldRequest | None = None

    def lead_to(self, vaults: Sequence[str]) -> None:
        """Lead new connections to these."""
        self._vaults = [(str(parts.hostname), parts.port) for parts in map(urlsplit, vaults)]

    def forget(self) -> None:
        """Let every connection there is end by a reset at its next request."""
        self._loop.call_soon_threadsafe(lambda: self._forgotten.update(self._open.values()))

    def forget_in_silence(self) -> set[int]:
        """Drop whatever arrives on the present connections; return their clients' ports."""
        forgotten = set()
        for writer in list(self._open.values()):
            forget(writer)
            forgotten.add(writer.get_extra_info("peername")[1])
        return forgotten

    def hold(self, what: str, moment: Moment, *, every: bool = False) -> HeldRequest:
        """Hold the next request whose method and path match, or every one until they are let go."""
        self._holding = held = HeldRequest(re.compile(what), moment, every)
        return held

    async def _carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        vault_reader, vault_writer = await self._connect()
        try:
            while True:
                asked = await _next(reader, vault_reader)
                if writer in self._forgotten:
                    self.resets += 1
                    reset(writer)
                    return
                if self.no_route is not None:
                    writer.write(self.no_route)
                    continue
                what = b" ".join(asked.split(b" ", 2)[:2]).decode()
                await self._stop(what, "before")
                vault_writer.write(asked)
                answer = await _answer(vault_reader)
                self.passed.append(Passed(what, int(answer.split(b" ", 2)[1])))
                await self._stop(what, "after")
                await asyncio.sleep(self.delay)
                answer = _DATE.sub(self._set_back, answer, count=1) if self.behind else answer
                if self.cuts:
                    writer.write(answer[: len(answer) // 2])
                    await writer.drain()
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            vault_writer.transport.abort()

    def _set_back(self, date: re.Match[bytes]) -> bytes:
        moment = parsedate_to_datetime(date[1].decode()) - self.behind
        return b"Date: " + format_datetime(moment, usegmt=True).encode()

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        for _ in self._vaults:
            self._turn += 1
            vault = self._vaults[self._turn % len(self._vaults)]
            with suppress(OSError):
                if not self.by_health or await _is_well(*vault):
                    return await asyncio.open_connection(*vault)
        raise ConnectionRefusedError

    async def _stop(self, what: str, moment: Moment) -> None:
        held = self._holding
        if held and held.moment == moment and held.what.search(what):
            if not held.every:
                self._holding = None
            await held.wait()


async def _is_well(host: str, port: int | None) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /v1/sys/health?standbyok=true HTTP/1.1\r\nHost: vault\r\n\r\n")
        return (await reader.readline()).split(b" ")[1:2] == [b"200"]
    finally:
        writer.transport.abort()


async def _next(reader: StreamReader, vault_reader: StreamReader) -> bytes:
    """Return the client's next request. A connection that Vault closes first is closed for the client at once."""
    asking, closing = asyncio.ensure_future(request(reader)), asyncio.ensure_future(vault_reader.read(1))
    try:
        await asyncio.wait({asking, closing}, return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            raise ConnectionAbortedError
        return asking.result()
    finally:
        asking.cancel()
        closing.cancel()
        await asyncio.gather(asking, closing, return_exceptions=True)  # until they let go of their readers


async def _answer(reader: StreamReader) -> bytes:
    """Return one answer, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if length := fields.get(b"content-length"):
        return head + await reader.readexactly(int(length))
    if fields.get(b"transfer-encoding") == b"chunked":
        return head + await _chunks(reader)
    return head if status in (204, 304) else head + await reader.read()


async def _chunks(reader: StreamReader) -> bytes:
    whole = b""
    while True:
        size = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size, 16) + 2)
        whole += size + chunk
        if int(size, 16) == 0:
            return whole
