"""Faults of a LivePerson service, and the accounts they apply to. `wire` and `liveperson` act them out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import Final, Literal

Service = Literal["domain", "sentinel", "clock", "jwks", "idp", "send"]
"""`clock` is any other path of a Sentinel host, asked for nothing but its Date."""


class _Drop:
    def __repr__(self) -> str:
        return "DROP"


DROP: Final = _Drop()
"""As an override's value: leave this claim or header out."""


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; fields combine where that makes sense. The plain `Fault()` is a healthy service."""

    # instead of the answer
    refuse: bool = False
    """Close the connection without a byte."""
    hang: bool = False
    """Take the request and never answer."""
    status: int | None = None
    """Answer with this status, `body` and `headers`; the service itself is not asked."""
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to whatever is answered."""
    answer: bytes | None = None
    """A 200 with this body."""
    redirect_to: str | None = None
    """A redirect to this URL: 307, or `status`."""
    echo_request: bool = False
    """An error, 400 or `status`, whose body repeats the request's, secret and all."""
    body_size: int = 0
    """A 200 with a body of this many bytes."""
    gzip_bomb: int = 0
    """A 200 with a small body that unpacks to this many bytes."""

    # the way the answer is sent
    delay: float = 0.0
    """Seconds until the service begins to look at the request."""
    drip: float = 0.0
    """Seconds before each byte of the answer, from `drip_from` on."""
    drip_from: Literal["headers", "body"] = "body"
    cut: bool = False
    """Close the connection in the middle of the body."""
    no_date: bool = False

    # the token and the clock
    claims: Mapping[str, object] = field(default_factory=dict)
    """Overrides of the token's claims; `DROP` leaves one out."""
    header: Mapping[str, object] = field(default_factory=dict)
    """The same for the token's header; `alg` also decides how it is signed."""
    same_token: bool = False
    """Hand out this client's last token as long as it lives."""
    skew: timedelta = timedelta()
    """Lead of the server's clock."""


@dataclass
class _Entry:
    fault: Fault
    times: int | None


_Key = tuple[Service, str | None, str | None]


class Faults:
    """The faults in force. Safe to change from any thread while the services run."""

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}
        self._lock = Lock()

    def set(
        self,
        fault: Fault,
        *,
        account: str | None = None,
        host: str | None = None,
        service: Service = "sentinel",
        times: int | None = None,
    ) -> None:
        """Put a fault in force for an account, a host (as in `LivePerson.hosts`) or all; for the next `times` requests.

        The most specific one wins: account and host, then account, then host, then all.
        """
        with self._lock:
            self._entries[service, account, host] = _Entry(fault, times)

    def clear(self, *, account: str | None = None, host: str | None = None, service: Service = "sentinel") -> None:
        """Undo `set` with the same selectors; other faults stay."""
        with self._lock:
            self._entries.pop((service, account, host), None)

    def reset(self) -> None:
        """Undo every `set`."""
        with self._lock:
            self._entries.clear()

    @contextmanager
    def on(
        self, fault: Fault, *, account: str | None = None, host: str | None = None, service: Service = "sentinel"
    ) -> Iterator[None]:
        """Have a fault in force inside a `with` block."""
        self.set(fault, account=account, host=host, service=service)
        try:
            yield
        finally:
            self.clear(account=account, host=host, service=service)

    def take(self, service: Service, account: str, host: str) -> Fault:
        """Return the fault for one request, counted in its `times`; a healthy `Fault()` if there is none."""
        with self._lock:
            keys = (service, account, host), (service, account, None), (service, None, host), (service, None, None)
            for key in keys:
                if entry := self._entries.get(key):
                    if entry.times is not None:
                        entry.times -= 1
                        if entry.times <= 0:
                            del self._entries[key]
                    return entry.fault
        return Fault()
