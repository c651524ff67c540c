"""Answers of the local services, and the many bad ways to send one."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web
from multidict import CIMultiDict

from sandbox.faults import Fault

_MIB = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A service's answer. `blanks` are that many spaces after the body."""

    status: int
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    blanks: int = 0
    fingerprint: str | None = None
    """Of the token in it."""


def json_response(status: int, document: object, fingerprint: str | None = None) -> Answer:
    return Answer(status, json.dumps(document).encode(), fingerprint=fingerprint)


def override_response(fault: Fault, request_body: bytes) -> Answer | None:
    """Return the answer that a fault gives in the service's place, if it does."""
    if fault.redirect_to is not None:
        return Answer(fault.status or 307, headers={"Location": fault.redirect_to})
    if fault.echo_request:
        return Answer(fault.status or 400, b"cannot read: " + request_body, {"Content-Type": "text/plain"})
    if fault.body_size:
        return Answer(200, blanks=fault.body_size)
    if fault.gzip_bomb:
        return Answer(200, _bomb(fault.gzip_bomb), {"Content-Encoding": "gzip"})
    if fault.status is not None:
        return Answer(fault.status, fault.body or b"")
    return None if fault.answer is None else Answer(200, fault.answer)


async def send(request: web.Request, answer: Answer, fault: Fault, now: float) -> web.StreamResponse:
    """Send an answer the way the fault wants it, with `now` as its Date."""
    headers = CIMultiDict({"Content-Type": "application/json", "Date": formatdate(now, usegmt=True)})
    headers.update(answer.headers)
    headers.update(fault.headers)
    if fault.cut or fault.drip or fault.no_date:
        await _send_raw(request, answer, fault, headers)
        return web.Response()  # is never sent, the connection is closed
    body = _spaces(answer.blanks) if answer.blanks else answer.body
    return web.Response(status=answer.status, headers=headers, body=body)


def abort(request: web.Request) -> web.StreamResponse:
    """Close the connection as it is, without TLS's goodbye."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _send_raw(request: web.Request, answer: Answer, fault: Fault, headers: CIMultiDict[str]) -> None:
    """Write the answer past aiohttp, which would send headers in one piece and always a Date."""
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):  # the client has disconnected already
        return
    body = answer.body + b" " * answer.blanks
    if fault.no_date:
        headers.popall("Date")
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}", *(f"{name}: {headers[name]}" for name in headers)]
    head = "\r\n".join([*lines, "", ""]).encode()
    if fault.cut:
        transport.write(head + body[: len(body) // 2])
        transport.abort()
        return
    at_once = 0 if fault.drip_from == "headers" else len(head)
    if not fault.drip:
        at_once = len(head) + len(body)
    wire = head + body
    transport.write(wire[:at_once])
    for byte in wire[at_once:]:
        await asyncio.sleep(fault.drip)
        transport.write(bytes([byte]))
    transport.close()


async def _spaces(size: int) -> AsyncIterator[bytes]:
    """Yield spaces in pieces, so that a huge body costs neither memory nor the other clients' time."""
    for start in range(0, size, _MIB):
        yield b" " * min(_MIB, size - start)


def _bomb(size: int) -> bytes:
    # A gzip file may have many members: one packed MiB, repeated, is ready at once at any size.
    return gzip.compress(bytes(_MIB)) * (size // _MIB) + gzip.compress(bytes(size % _MIB))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
