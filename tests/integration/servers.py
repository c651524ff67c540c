"""Small servers for the wire itself: each answers as its test prescribes, byte by byte, and records what it got."""

import asyncio
import contextlib
import ctypes
import socket
import ssl
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import datetime
from threading import Thread
from types import TracebackType
from typing import Self

import trustme

Talk = Callable[[StreamReader, StreamWriter], Awaitable[None]]
"""The conversation on one connection, which is closed on return."""


class Server:
    """A server on a free port of 127.0.0.1, in a separate thread. Without `tls` it speaks plain HTTP."""

    def __init__(
        self, talk: Talk, *, tls: ssl.SSLContext | None = None, port: int = 0, listener: socket.socket | None = None
    ) -> None:
        """:param listener: one that was opened already, in another network namespace."""
        self._talk = talk
        self._tls = tls
        self._listener = listener
        self.port = port
        self.connections = 0
        self.closed_connections = 0
        """Connections that it ended."""
        self.requests: list[bytes] = []
        """Each request that a `Talk` of `answering` took, head and body as they came."""
        self._open: dict[asyncio.Task[None], StreamWriter] = {}
        self._ready: Future[None] = Future()
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), name="server")

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join()

    def abort_all(self) -> None:
        """End the connections that there are."""
        for writer in list(self._open.values()):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    async def _serve(self) -> None:
        self._loop, self._stop_requested = asyncio.get_running_loop(), asyncio.Event()
        try:
            listener = self._listener or socket.create_server(("127.0.0.1", self.port))
            server = await asyncio.start_server(self._handle, sock=listener, ssl=self._tls)
        except OSError as error:
            self._ready.set_exception(error)
            return
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set_result(None)
        await self._stop_requested.wait()
        server.close()
        for task, writer in self._open.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0.01)  # an aborted transport lets go of its socket a few rounds of the loop later

    def _handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        ignore_disconnect = contextlib.suppress(OSError, asyncio.IncompleteReadError)  # the client has
        with ignore_disconnect:
            await self._talk(reader, writer)
        writer.close()
        self.closed_connections += 1
        with ignore_disconnect:
            await writer.wait_closed()


class Answering(Server):
    """Takes requests and gives each the same answer, as often as the client asks on a connection."""

    def __init__(
        self, answer: bytes, *, tls: ssl.SSLContext | None = None, port: int = 0, keep_alive: bool = True
    ) -> None:
        super().__init__(self._answer, tls=tls, port=port)
        self._bytes = answer
        self._keep_alive = keep_alive

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            self.requests.append(await request(reader))
            writer.write(self._bytes)
            await writer.drain()
            if not self._keep_alive:
                return


def server_tls(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    """Return a server's side of TLS, with a certificate for these names or for this machine."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=not_after).configure_cert(made)
    return made


async def request(reader: StreamReader) -> bytes:
    """Read one request, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return head + await reader.readexactly(int(value))
    return head


def http(body: bytes = b"{}", *headers: str, status: str = "200 OK") -> bytes:
    """Return a complete answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def silent(reader: StreamReader, writer: StreamWriter) -> None:
    """Takes a connection, and that is all."""
    del reader, writer
    await asyncio.Event().wait()


async def in_clear(reader: StreamReader, writer: StreamWriter) -> None:
    """Knows no TLS."""
    await reader.read(1)
    writer.write(http(status="400 Bad Request"))


def for_ever(at_once: bytes, piece: bytes, pause: float, *, after: bool = True) -> Talk:
    """Send the piece again and again, byte by byte if there is a pause; `after` a request, or at once."""

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        if after:
            await request(reader)
        writer.write(at_once)
        while True:
            for at in range(len(piece)) if pause else [None]:
                writer.write(piece if at is None else piece[at : at + 1])
                await writer.drain()
                await asyncio.sleep(pause or 0.001)

    return talk


def reset(writer: StreamWriter) -> None:
    """Let the other end see a reset, as a firewall sends that knows nothing of the connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def forget(writer: StreamWriter) -> None:
    """Let the kernel drop all incoming data of the connection, unacknowledged: as a NAT without an entry for it."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    so_attach_filter = 26
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, so_attach_filter, program)


class Proxy(Server):
    """A forward proxy that knows CONNECT: it sees where to, and nothing else. Every name leads it to this machine."""

    def __init__(self, leads_to: int | None = None) -> None:
        """:param leads_to: the port that every tunnel leads to; None = the one that is asked for."""
        super().__init__(self._connect)
        self._leads_to = leads_to
        self.targets: list[str] = []
        self.is_down = False

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self.is_down:
            return
        method, target, _ = (await request(reader)).decode().split(" ", 2)
        self.targets.append(f"{method} {target}")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await _join(reader, writer, self._leads_to or int(target.rpartition(":")[2]))


class Balancer(Server):
    """A balancer of TCP connections: each new one is bound to the port that `choose` returns then."""

    def __init__(self, choose: Callable[[], int], *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        super().__init__(self._forward, tls=tls, port=port)
        self._choose = choose

    async def _forward(self, reader: StreamReader, writer: StreamWriter) -> None:
        await _join(reader, writer, await asyncio.to_thread(self._choose))


async def _join(reader: StreamReader, writer: StreamWriter, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))
    finally:
        there_writer.transport.abort()


async def pipe(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
