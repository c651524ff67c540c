"""The installed daemon among hostile servers, together with accounts whose servers behave."""

import asyncio
import gzip
import json
import re
import ssl
import time
import zlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import requests
import trustme

from sandbox.faults import Fault
from tests.builders import make_token
from tests.fuzz.forms import FORMS
from tests.integration.processes import Daemon, Scene, eventually
from tests.integration.servers import Answering, Server, Talk, for_ever, http, in_clear, request, server_tls, silent
from tests.leaks import leaks

DEADLINE = 2.0
"""sentinel.timeout of the daemon, in seconds."""
GOOD = ("good-1", "good-2", "good-3")
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_MIB = 1 << 20


@dataclass(frozen=True)
class Hostile:
    talk: Talk
    says: str = ""
    """Pattern for the logged error."""
    tls: str | None = "right"
    """Name of the certificate; None = plain HTTP."""


@dataclass
class Report:
    logged: dict[str, str] = field(default_factory=dict)
    """By server: the logged error of its first answer."""
    held_seconds: dict[str, float] = field(default_factory=dict)
    """By server: seconds of the longest connection."""
    leaks: list[str] = field(default_factory=list)
    outside: int = 0
    """Connections to hosts that are not on the allow list."""
    served: int = 0
    """Refreshes of the well-behaved accounts."""
    min_remaining: float = 1.0
    """The least share of life that was left when one of their tokens was replaced."""
    alive: bool = False
    paths: set[str] = field(default_factory=set)
    """Paths of the daemon's requests in OpenBao's audit log."""


# Talks


def _saying(answer: bytes | Callable[[bytes], bytes], *, hang_up: bool = True) -> Talk:
    """Return one answer, which may be made from the request."""

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        asked = await request(reader)
        writer.write(answer(asked) if callable(answer) else answer)
        await writer.drain()
        if not hang_up:
            await asyncio.Event().wait()

    return talk


def _form(asked: bytes) -> dict[str, str]:
    return {key: value[0] for key, value in parse_qs(asked.partition(b"\r\n\r\n")[2].decode()).items()}


def _echo(form: str, status: str) -> Talk:
    def answer(asked: bytes) -> bytes:
        encoded_secret = FORMS[form](_form(asked)["client_secret"])
        return http(f'{{"error": "no {encoded_secret} here"}}'.encode("latin-1", "replace"), status=status)

    return _saying(answer)


def _cut_echo(asked: bytes) -> bytes:
    secret = _form(asked)["client_secret"]
    return http(f"starts {secret[:14]} ends {secret[-13:]}".encode(), status="401 No")


def _header_echo(asked: bytes) -> bytes:
    return http(b"{}", f"X\x00: {_form(asked)['client_secret']}")


def _redirect_echo(asked: bytes) -> bytes:
    return http(b"", f"Location: https://{_form(asked)['client_secret']}.example/", status="302 Found")


def _leaking_token(token_type: str = "Bearer", **templates: str) -> Talk:
    """Return a valid token, with the secret in a claim or in `token_type`."""

    def answer(asked: bytes) -> bytes:
        form, account = _form(asked), asked.split(b"/account/")[1].split(b"/")[0].decode()
        claims = {key: value.format(form["client_secret"]) for key, value in templates.items()}
        now = int(time.time())
        token = make_token(None, **{"aud": account, "azp": form["client_id"], "iat": now, "exp": now + 60, **claims})
        beside = token_type.format(form["client_secret"])
        return http(json.dumps({"access_token": token, "token_type": beside}).encode())

    return _saying(answer)


def _zipped(times: int) -> bytes:
    body = gzip.compress(bytes(_MIB)) * 64
    for _ in range(times - 1):
        body = gzip.compress(body)
    return body


_TIME = "no complete answer within 2 s"
_BROKEN = "the answer is broken|connection lost"
_LARGE = "larger than 256 KiB"
_PACKED = "the answer is compressed, though that was not asked for"
_NO_TOKEN = "without an access_token"

SLOW: Mapping[str, Hostile] = {
    "accepts and says nothing": Hostile(silent, _TIME),
    "does not begin the handshake": Hostile(silent, _TIME, tls=None),
    "drips the handshake": Hostile(for_ever(b"", b"\x16\x03\x03\x40\x00" + bytes(999), 0.02, after=False), _TIME, None),
    "drips the status line": Hostile(for_ever(b"", b"HTTP/1.1 200 " + b"x" * 999, 0.02), _TIME),
    "drips headers": Hostile(for_ever(_OK, b"X: y\r\n", 0.02), f"{_TIME}|{_BROKEN}"),
    "drips the body": Hostile(for_ever(_OK + b"Content-Length: 9999\r\n\r\n", b"x", 0.02), _TIME),
    "drips chunks": Hostile(for_ever(_CHUNKED, b"1\r\nx\r\n", 0.02), _TIME),
    "drips trailers": Hostile(for_ever(_CHUNKED + b"0\r\n", b"X: y\r\n", 0.02), f"{_TIME}|{_BROKEN}"),
    "a body without an end": Hostile(for_ever(_OK + b"\r\n", b" ", 0.02), _TIME),
    "says 100 for ever": Hostile(for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0), _TIME),
    "says 103 for ever": Hostile(for_ever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 0), _BROKEN),
}
LARGE: Mapping[str, Hostile] = {
    "a status line without an end": Hostile(for_ever(b"HTTP/1.1 200 ", b"A" * 9999, 0), _BROKEN),
    "headers without an end": Hostile(for_ever(_OK, b"X: y\r\n" * 99, 0), _BROKEN),
    "a header of a mebibyte": Hostile(_saying(_OK + b"X: " + b"y" * _MIB + b"\r\n\r\n"), _BROKEN),
    "a hundred long headers": Hostile(_saying(http(b"{}", *(f"X{n}: {'y' * 60_000}" for n in range(98)))), _NO_TOKEN),
    "a chunk's length without an end": Hostile(for_ever(_CHUNKED, b"0" * 9999, 0), _BROKEN),
    "trailers without an end": Hostile(for_ever(_CHUNKED + b"0\r\n", b"X: y\r\n" * 99, 0), f"{_BROKEN}|{_TIME}"),
    "a body of 5 MiB": Hostile(_saying(http(b" " * (5 * _MIB))), _LARGE),
    "a body without a length": Hostile(for_ever(_OK + b"\r\n", b" " * 65536, 0), f"{_LARGE}|{_TIME}"),
    "a gzip bomb": Hostile(_saying(http(_zipped(1), "Content-Encoding: gzip")), _PACKED),
    "a gzip bomb in gzip": Hostile(_saying(http(_zipped(3), "Content-Encoding: gzip, gzip, gzip")), _PACKED),
    "a deflate bomb": Hostile(_saying(http(zlib.compress(bytes(64 * _MIB)), "Content-Encoding: deflate")), _PACKED),
    "a hundred codings": Hostile(_saying(http(b"x", "Content-Encoding: " + ", ".join(["gzip"] * 100))), _PACKED),
    "no gzip though it says so": Hostile(_saying(http(b"{}", "Content-Encoding: gzip")), _PACKED),
    "256 KiB of brackets": Hostile(_saying(http(b"[" * (256 * 1024 - 1))), _NO_TOKEN),
    "256 KiB of braces": Hostile(_saying(http(b'{"a":' * 50_000)), _NO_TOKEN),
    "256 KiB of digits": Hostile(_saying(http(b'{"access_token": ' + b"9" * 250_000 + b"}")), _NO_TOKEN),
    "256 KiB in punycode": Hostile(
        _saying(http(b"-" + b"ab" * 125_000, "Content-Type: application/json; charset=punycode")), _NO_TOKEN
    ),
    "256 KiB of a token": Hostile(_saying(http(b'{"access_token": "' + b"a" * 250_000 + b'"}')), "at most 8192"),
    "256 KiB of an error": Hostile(_saying(http(b"\\u0041&#65;%41" * 18_000, status="500 Oops")), "answers 500"),
}
BROKEN: Mapping[str, Hostile] = {
    "HTTP/0.9": Hostile(_saying(b"hello"), _BROKEN),
    "HTTP/9.9": Hostile(_saying(b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}"), f"{_BROKEN}|{_NO_TOKEN}"),
    "status 99999": Hostile(_saying(http(status="99999 Odd")), _BROKEN),
    "status 999": Hostile(_saying(http(status="999 Odd")), "answers 999"),
    "status -1": Hostile(_saying(http(status="-1 Odd")), _BROKEN),
    "a header without a colon": Hostile(
        _saying(_OK + b"nonsense\r\nContent-Length: 2\r\n\r\n{}"), f"{_NO_TOKEN}|{_BROKEN}"
    ),
    "NUL in a header": Hostile(_saying(http(b"{}", "X\x00: \x00")), f"{_NO_TOKEN}|{_BROKEN}"),
    "a length too long": Hostile(_saying(_OK + b"Content-Length: 99\r\n\r\n{}"), _BROKEN),
    "a length too short": Hostile(_saying(_OK + b'Content-Length: 1\r\n\r\n{"access_token": "x"}'), _NO_TOKEN),
    "a negative length": Hostile(_saying(_OK + b"Content-Length: -5\r\n\r\n{}"), f"{_BROKEN}|{_NO_TOKEN}"),
    "two lengths": Hostile(
        _saying(_OK + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}"), f"{_BROKEN}|{_NO_TOKEN}"
    ),
    "a length and chunks": Hostile(
        _saying(_CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n2\r\n{}\r\n0\r\n\r\n"), f"{_BROKEN}|{_NO_TOKEN}"
    ),
    "no chunks though it says so": Hostile(_saying(_CHUNKED + b"{}"), _BROKEN),
    "a negative chunk": Hostile(_saying(_CHUNKED + b"-5\r\nhello\r\n"), _BROKEN),
    "a chunk cut off": Hostile(_saying(_CHUNKED + b"ff\r\nhello"), _BROKEN),
    "answers twice": Hostile(_saying(http(b"{}") + http(b"{}", status="401 No")), _NO_TOKEN),
    "hangs up": Hostile(_saying(b""), _BROKEN),
    "speaks in clear": Hostile(in_clear, "TLS failed|connection lost", tls=None),
    "commands to the terminal": Hostile(
        _saying(http(b"\x1b[2J\x1b]0;x\x07\r\n\xe2\x80\xaeX", status="400 \x1b[2J")), r"answers 400: \[2J"
    ),
    "a forged log line": Hostile(
        _saying(http(b'\r\n{"event": "token.refreshed"}\r\n', status="400 No")), "answers 400"
    ),
    "an odd Retry-After and Date": Hostile(
        _saying(http(b"", f"Retry-After: {'9' * 5000}", "Date: Mon, 99 Xxx", status="503 No")), "answers 503$"
    ),
}
CERTIFICATES: Mapping[str, Hostile] = {
    "signed by itself": Hostile(_saying(http()), "its certificate is refused", "itself"),
    "signed by another": Hostile(_saying(http()), "its certificate is refused", "another"),
    "made for another host": Hostile(_saying(http()), "its certificate is refused", "host"),
    "expired": Hostile(_saying(http()), "its certificate is refused: certificate has expired", "expired"),
}
ECHOES: Mapping[str, Hostile] = {
    **{f"tells the secret {form}": Hostile(_echo(form, "401 No"), r"answers 401: .*\[redacted\]") for form in FORMS},
    "tells the secret cut in two": Hostile(_saying(_cut_echo), r"starts \[redacted\] ends \[redacted\]"),
    "tells the secret in a broken header": Hostile(_saying(_header_echo), f"{_NO_TOKEN}|{_BROKEN}"),
    "tells the secret as a redirect's host": Hostile(
        _saying(_redirect_echo), r"a redirect \(302\) to another (host|path) was not followed$"
    ),
    "tells the secret as scope": Hostile(_leaking_token(scope="{}"), "token contains the client_secret"),
    "tells the secret as audience": Hostile(_leaking_token(aud="{}"), "token contains the client_secret"),
    "tells the secret as token_type": Hostile(
        _leaking_token(token_type="{}"), r"token_type: expected Bearer, got \[redacted\]"
    ),
    "tells the secret as issuer": Hostile(_leaking_token(iss="{}"), "token contains the client_secret"),
}
ELSEWHERE = (
    "https://{https}/",
    "http://{http}/",
    "//{https}/x",
    "https://localhost@{https}/",
    "/again",
    "file:///etc/passwd",
)
"""Targets of redirects; the braces are hosts that must never get a request."""
NAMED = ("{https}", "{http}", "x@{https}", "{https}/.liveperson.net", "https://{https}", "{https}?")
"""Names that a Domain API returns as Sentinel's host."""


class _Timed(Server):
    """A server that records the duration of each connection."""

    def __init__(self, hostile: Hostile, tls: ssl.SSLContext | None) -> None:
        super().__init__(self._timed, tls=tls)
        self._says = hostile.talk
        self.held_seconds: list[float] = []

    async def _timed(self, reader: StreamReader, writer: StreamWriter) -> None:
        began = time.monotonic()
        speaking = asyncio.ensure_future(self._says(reader, writer))
        try:
            # the client's end shows in the reader, and in the transport after a write to a closed connection
            while not (_has_ended(reader) or writer.transport.is_closing() or speaking.done()):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)
        finally:
            self.held_seconds.append(time.monotonic() - began)
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)


def _has_ended(reader: StreamReader) -> bool:
    """Return True if the client hung up, even if not all that it sent was read."""
    return reader.exception() is not None or reader._eof  # type: ignore[attr-defined]  # noqa: SLF001 - at_eof wants it read


def _contexts(ca: trustme.CA) -> dict[str, ssl.SSLContext]:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    return {
        "right": server_tls(ca, "localhost"),
        "itself": server_tls(trustme.CA(), "localhost"),
        "another": server_tls(trustme.CA()),
        "host": server_tls(ca, "other.invalid"),
        "expired": server_tls(ca, "localhost", not_after=yesterday),
    }


def among_hostile_servers(folder: Path) -> Report:
    """Run one daemon with an account for each hostile server and the well-behaved accounts, until each was tried."""
    report, ca = Report(), trustme.CA()
    contexts = _contexts(ca)
    with ExitStack() as stack:
        world = stack.enter_context(Scene(folder, token_life=timedelta(seconds=10), audit=True))
        canaries = {
            "https": stack.enter_context(Answering(http(), tls=contexts["right"])),
            "http": stack.enter_context(Answering(http())),
        }
        names = {name: f"localhost:{server.port}" for name, server in canaries.items()}
        servers: dict[str, Hostile] = {**SLOW, **LARGE, **BROKEN, **CERTIFICATES, **ECHOES}
        for number, target in enumerate(ELSEWHERE):
            location = f"Location: {target.format(**names)}"
            answer = http(b"", location, status=f"{(301, 302, 303, 307, 308)[number % 5]} Elsewhere")
            servers[f"redirects to {target}"] = Hostile(_saying(answer), "a redirect .* was not followed")
        accounts, expected, running = {}, {}, {}
        for number, (name, hostile) in enumerate(servers.items()):
            running[name] = stack.enter_context(_Timed(hostile, contexts[hostile.tls] if hostile.tls else None))
            accounts[name], expected[name] = f"hostile-{number}", hostile.says
            world.add_account(accounts[name], sentinel_domain=f"localhost:{running[name].port}")
        for number, target in enumerate(NAMED):
            name, host = f"the Domain API names {target}", target.format(**names)
            accounts[name], expected[name] = f"named-{number}", "is no host name|does not allow"
            world.add_account(accounts[name])
            fault = Fault(answer=json.dumps({"service": "sentinel", "baseURI": host}).encode())
            world.liveperson.faults.set(fault, account=accounts[name], service="domain")
        for good in GOOD:
            world.add_account(good)
        daemon = _daemon(world, ca, [f"localhost:{server.port}" for server in running.values()])
        for name, account in accounts.items():
            report.logged[name] = eventually(partial(_logged_error, daemon, account, expected[name]), within=60)
        report.served = len(eventually(partial(_served, daemon, at_least=9), within=60))
        report.alive = requests.get(f"{daemon.url}/livez", timeout=5).ok
        shares = [line["remaining_at_refresh"] / 10 for line in _served(daemon) if line["reason"] == "due"]
        report.min_remaining = min(shares, default=1.0)
        printed = f"{Path(f'/proc/{daemon.process.pid}/cmdline').read_text()}\n{json.dumps(daemon.events())}"
        report.leaks = leaks(printed, world.secrets)
        daemon.stop()
        report.held_seconds = {name: max(server.held_seconds, default=0.0) for name, server in running.items()}
        report.outside = sum(canary.connections for canary in canaries.values())
        report.paths = set(_touched(world))
        bugs = [
            line
            for line in daemon.events()
            if "worker.internal_error" in line["event"] or "internal error" in str(line)
        ]
        assert not bugs, bugs
    assert all(message.isprintable() for message in report.logged.values())
    return report


def _logged_error(daemon: Daemon, account: str, pattern: str) -> str | None:
    """Return the first error that matches: on a loaded machine an attempt may end before any answer."""
    errors = (str(line["error"]) for line in daemon.events("refresh.failed", account=account))
    return next((error for error in errors if re.search(pattern, error)), None)


def _daemon(world: Scene, ca: trustme.CA, hosts: list[str]) -> Daemon:
    both = world.folder / "both.pem"
    both.write_bytes(world.liveperson.ca_file.read_bytes() + ca.cert_pem.bytes())
    allowed = [*world.liveperson.hosts.values(), *hosts]
    return world.daemon(
        {
            "APPJWT_SENTINEL_CA_CERT": str(both),
            "APPJWT_SENTINEL_ALLOWED_HOSTS": ",".join(allowed),
            "APPJWT_SENTINEL_TIMEOUT": f"{DEADLINE:g}s",
            "APPJWT_HTTP_LISTEN": "127.0.0.1:0",
        }
    )


def _served(daemon: Daemon, at_least: int = 0) -> list[dict[str, Any]]:
    lines = [line for line in daemon.events("token.refreshed") if line["account"] in GOOD]
    return lines if len(lines) >= at_least else []


def _touched(world: Scene) -> Iterator[str]:
    """Yield the paths that the daemon requested, by OpenBao's audit log."""
    for line in map(json.loads, world.openbao.audit_file.read_text().splitlines()):
        asked = line["request"]["path"]
        if line["type"] == "request" and (
            "appjwt-worker" in line.get("auth", {}).get("policies", []) or asked.startswith("auth/approle/login")
        ):
            yield asked
