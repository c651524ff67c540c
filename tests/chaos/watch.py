"""Readers that poll every token path straight from Vault, all the while, and keep book of what they find."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jwt
import requests

from sandbox.liveperson import Credentials, LivePerson
from sandbox.openbao import OpenBao

FRESH = 0.4
"""Of its life, at least, every token has left in normal running."""
PLANTED = "planted"
"""A field by which a test marks what it puts there by hand."""
_TIMEOUT = 1.0


@dataclass
class Book:
    """Findings of the readers since it was opened."""

    reads: int = 0
    lost: int = 0
    """There was nothing, where there had been a token."""
    planted: int = 0
    """Reads of what a test put there by hand."""
    expired: int = 0
    backwards: int = 0
    """A token that expires earlier than one read there before."""
    foreign: int = 0
    """Another account's or app's token, or one that passed no check."""
    least_share: float = 1.0
    """Of a token's life."""


@dataclass
class Seen:
    """The newest that was read at one path."""

    at: float
    """On the monotonic clock."""
    fingerprint: str | None
    """None = nothing, or something planted."""
    ends: int
    share: float


@dataclass
class Watch:
    """Readers of all accounts. Each of `vaults` is asked as long as it answers: a standby is for a lost leader."""

    vaults: Sequence[OpenBao]
    liveperson: LivePerson
    accounts: dict[str, Credentials]
    pause: float = 0.1
    """Seconds between two rounds."""
    ignored: frozenset[str] = frozenset()
    """Accounts that are not read for now."""
    newest: dict[str, Seen] = field(default_factory=dict)
    book: Book = field(default_factory=Book)
    failures: list[str] = field(default_factory=list)
    """Failures that must never occur, in words."""
    _ends: dict[str, int] = field(default_factory=dict)
    _stop_requested: threading.Event = field(default_factory=threading.Event)
    _turn: int = 0

    def __enter__(self) -> Self:
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(self.vaults[0].ca_file) if self.vaults[0].ca_file else True
        self._session.headers["X-Vault-Token"] = self.vaults[0].root_token
        self._key = self.liveperson.public_key_pem
        self._thread = threading.Thread(target=self._poll, name="watch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_requested.set()
        self._thread.join()
        self._session.close()

    def open(self) -> Book:
        """Start a new book. The expiry of each account's tokens is remembered."""
        self.book = Book()
        self.failures = []
        return self.book

    def fresh(self, since: float) -> bool:
        """Return True if each path has a token, read after this moment, with as much life as in normal running."""
        return all(
            (seen := self.newest.get(account)) and seen.at > since and seen.fingerprint and seen.share >= FRESH
            for account in self.accounts
        )

    def fingerprints(self) -> dict[str, str | None]:
        return {account: seen.fingerprint for account, seen in self.newest.items()}

    def _poll(self) -> None:
        while not self._stop_requested.wait(self.pause):
            for account in list(self.accounts):
                try:
                    if account not in self.ignored:
                        self._read(account)
                except requests.RequestException:  # Vault did not answer, or not for them
                    self._turn += 1
                except Exception as error:  # noqa: BLE001 - whatever it is, the test is to hear of it
                    self._fail(account, repr(error))

    def _read(self, account: str) -> None:
        vault = self.vaults[self._turn % len(self.vaults)]
        at = time.monotonic()
        url = f"{vault.address}/v1/secret/data/liveperson/tokens/{account}"
        answer = self._session.get(url, timeout=_TIMEOUT, allow_redirects=False)
        nothing = answer.status_code == requests.codes.not_found
        if not answer.ok and not nothing:
            raise requests.HTTPError
        document = answer.json()
        if nothing and document.get("errors"):  # "no handler for route": the mount is not there
            raise requests.HTTPError
        self.book.reads += 1
        if nothing:
            if account in self._ends:
                self.book.lost += 1
            self.newest[account] = Seen(at, None, 0, 0.0)
            return
        self._check(account, document["data"]["data"], document["data"]["metadata"]["version"], at)

    def _check(self, account: str, data: dict[str, Any], version: int, at: float) -> None:
        if PLANTED in data:
            self.book.planted += 1
            self.newest[account] = Seen(at, None, 0, 0.0)
            return
        app = self.accounts[account]
        try:
            claims = jwt.decode(
                data["access_token"],
                self._key,
                algorithms=["RS256"],
                audience=account.partition("/")[0],
                options={"verify_exp": False, "verify_iat": False, "require": ["aud", "azp", "exp", "iat"]},
            )
        except (jwt.PyJWTError, KeyError) as error:
            self.book.foreign += 1
            self._fail(account, f"unchecked, {type(error).__name__}, version {version}")
            return
        ends, life = claims["exp"], claims["exp"] - claims["iat"]
        if claims["azp"] != app.client_id or life != self.liveperson.token_life.total_seconds():
            self.book.foreign += 1
            self._fail(account, f"foreign, {claims}, version {version}")
        share = (ends - time.time()) / life
        self.book.least_share = min(self.book.least_share, share)
        if share <= 0:
            self.book.expired += 1
        if ends < self._ends.get(account, 0):
            self.book.backwards += 1
            self._fail(account, f"backwards, from {self._ends[account]} to {ends}, version {version}")
        self._ends[account] = max(ends, self._ends.get(account, 0))
        self.newest[account] = Seen(at, data["fingerprint"], ends, share)

    def _fail(self, account: str, text: str) -> None:
        if len(self.failures) < 20:
            self.failures.append(f"{account}: {text}")
