"""Network namespaces, a router between them that cuts, flaps and delays each way by itself, and an OpenBao in three.

A namespace exists as long as a thread or process in it, and its interface as long as this process: whatever happens,
nothing of them remains, and nothing of this machine's network is touched.
"""

import asyncio
import ctypes
import fcntl
import heapq
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

from sandbox.raft import Cluster, RaftNode
from tests.integration.servers import Server, pipe

T = TypeVar("T")
Link = tuple[int, int]
"""From one namespace to another: cut, it leaves the way back as it is."""

TOOLS = ("ip", "root", "/dev/net/tun")
"""Requirements on the machine."""
PORT = 8200
"""Of a node."""
_CONNECTED_WITHIN = 0.3
"""Seconds, or the next node is tried."""
_FLAPS = 0.4
"""The share of the ways that is cut at any moment, while they flap."""
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001
_LARGEST = 65000
"""Bytes of a packet."""


class Space:
    """A namespace. What starts in it, processes and threads alike, stays in it."""

    def __init__(self, number: int) -> None:
        self.address = _address(number)
        self._thread = ThreadPoolExecutor(1, f"space-{number}", initializer=_unshare)
        self.interface = self.do(self._connect)

    def do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def close(self) -> None:
        self._thread.shutdown()

    def _connect(self) -> int:
        interface = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(interface, _TUNSETIFF, struct.pack("16sH22x", b"net0", _IFF_TUN_WITHOUT_HEADER))
        for command in (f"addr add {self.address}/24 dev net0", f"link set net0 mtu {_LARGEST} up", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        return interface


class Network:
    """So many spaces, numbered from 1, that reach one another."""

    def __init__(self, spaces: int) -> None:
        self.spaces = {number: Space(number) for number in range(1, spaces + 1)}
        self._cut: frozenset[Link] = frozenset()
        self._delayed: dict[Link, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._route, name="router")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for space in self.spaces.values():
            space.close()
        self._over.set()
        self._thread.join()
        for space in self.spaces.values():
            os.close(space.interface)

    @contextmanager
    def cut(self, links: Collection[Link]) -> Iterator[None]:
        self._cut = frozenset(links)
        try:
            yield
        finally:
            self._cut = frozenset()

    @contextmanager
    def delayed(self, links: Collection[Link], chance: Random) -> Iterator[None]:
        """Delay each way by a different time, up to half a second."""
        self._delayed = {link: chance.uniform(0.02, 0.5) for link in links}
        try:
            yield
        finally:
            self._delayed = {}

    @contextmanager
    def flapping(self, links: Collection[Link], chance: Random) -> Iterator[None]:
        """Cut a random part of these ways at any moment, and another one a second later."""
        over = threading.Event()

        def flap() -> None:
            while not over.wait(chance.uniform(0.2, 1.0)):
                self._cut = frozenset(link for link in links if chance.random() < _FLAPS)

        thread = threading.Thread(target=flap)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._cut = frozenset()

    def _route(self) -> None:
        interfaces = {number: space.interface for number, space in self.spaces.items()}
        waiting: list[tuple[float, int, int, bytes]] = []
        count = itertools.count()
        while not self._over.is_set():
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            for interface in select.select([*interfaces.values()], [], [], min(pause, 0.1))[0]:
                packet = os.read(interface, _LARGEST)
                link = (packet[15], packet[19])  # the last bytes of the addresses, in IPv4
                if packet[0] >> 4 != 4 or link[1] not in interfaces or link in self._cut:
                    continue
                due = time.monotonic() + self._delayed.get(link, 0.0)
                heapq.heappush(waiting, (due, next(count), interfaces[link[1]], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, interface, packet = heapq.heappop(waiting)
                os.write(interface, packet)


class Node(RaftNode):
    """One in a space. All of a cluster write to one audit file, values and all, for they share where it is."""

    def __init__(self, folder: Path, space: Space, **shared: Any) -> None:
        super().__init__(folder, **shared)
        self._space = space
        self.audit_file = folder.parent / "audit.log"
        self._listen = f"{space.address}:{PORT}"
        self.address = self.client.url = f"http://{self._listen}"

    def start(self) -> None:
        self._space.do(super().start)

    def _command(self) -> list[str]:
        command, config = super()._command(), self.folder / "server.hcl"
        options = f'options {{ file_path = "{self.audit_file}" log_raw = "true" }}'
        config.write_text(f'{config.read_text()}\naudit "file" "sandbox" {{ {options} }}\n')
        return command


class SpacedCluster(Cluster):
    def __init__(self, folder: Path, spaces: Sequence[Space]) -> None:
        first = Node(folder / "node-0", spaces[0])
        shared = {"seal_key": first.seal_key, "root_token": first.root_token, "joins": [first]}
        others = [Node(folder / f"node-{number}", spaces[number], **shared) for number in (1, 2)]
        self.nodes = [first, *others]


class Forwarder(Server):
    """A balancer without health checks: a connection is bound to the next address that accepts it."""

    def __init__(self, addresses: Sequence[tuple[str, int]], listener: socket.socket | None = None) -> None:
        super().__init__(self._forward, listener=listener)
        self._addresses = itertools.cycle(addresses)
        self._tries = len(addresses)

    async def _forward(self, reader: StreamReader, writer: StreamWriter) -> None:
        there_reader, there_writer = await self._connect()
        pipes = [asyncio.ensure_future(pipe(reader, there_writer)), asyncio.ensure_future(pipe(there_reader, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in pipes:
                each.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            there_writer.transport.abort()

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        for _ in range(self._tries):
            with suppress(OSError, TimeoutError):
                return await asyncio.wait_for(asyncio.open_connection(*next(self._addresses)), _CONNECTED_WITHIN)
        raise ConnectionRefusedError


def _address(number: int) -> str:
    return f"10.77.0.{number}"


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
