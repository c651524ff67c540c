"""Whose signature is it? Pinned keys from a PEM file, or those that Sentinel publishes as a JWKS.

A kid says which key to try first and nothing more: LivePerson's published tokens carry the same kid and are signed by
different keys.
"""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from worker import net
from worker.core.appjwt import AppJWT, Check, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage

_PATH = "/sentinel/well-known/jwks"
_FRESH_FOR = 3600.0
_FLOOR = 60.0
"""Seconds between two fetches from one host, whatever tokens come: an unknown key must not make a storm."""
_FLOOR_WITHOUT_KEYS = 5.0
"""The same while nothing could be fetched yet: no token can be published meanwhile."""
_MOST_KEYS = 32
"""Of one host: each may have to be tried on each token."""
_PEM_BLOCK = re.compile(rb"-----BEGIN (PUBLIC KEY|CERTIFICATE)-----.+?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    public: RSAPublicKey


@dataclass(frozen=True, slots=True)
class _Fetched:
    keys: Sequence[_Key] = ()
    at: float = float("-inf")
    error: RefreshError | None = None
    """Why the latest fetch failed; `keys` are then those known before."""


class PinnedKeys:
    """One or more public keys or certificates in a PEM file, read once."""

    def __init__(self, file: Path) -> None:
        """ValueError or OSError if there is no RSA key in it."""
        self._keys = [_Key("", each) for each in _load_pem(file.read_bytes())]
        self._file = file

    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None:
        """TokenRefusedError at check signature unless one of the keys made it."""
        del host, timeout
        if not _signed_by_any(token, self._keys):
            raise TokenRefusedError(Check.SIGNATURE, f"one by a key in {self._file}", "another")


class PublishedKeys:
    """What each Sentinel host publishes, cached."""

    def __init__(self, http: requests.Session, *, clock: Callable[[], float]) -> None:
        self._http = http
        self._clock = clock
        self._locks: dict[str, threading.Lock] = {}
        """One per host: who waits for a slow one keeps nobody else waiting."""
        self._cache: dict[str, _Fetched] = {}

    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None:
        """TokenRefusedError at check signature unless one of the host's keys made it; RefreshError if there are none.

        A token that no cached key made is a reason to ask anew, but not more often than once a minute.
        """
        known = self._cache.get(host, _Fetched())
        if self._clock() < known.at + _FRESH_FOR and _signed_by_any(token, known.keys):
            return
        known = self._fetched(host, timeout, seen=known.at)
        if not _signed_by_any(token, known.keys):
            refused = TokenRefusedError(
                Check.SIGNATURE, f"one by a key that {host} publishes", f"kid {token.kid[:80]!r}"
            )
            raise known.error or refused

    def _fetched(self, host: str, timeout: timedelta, seen: float) -> _Fetched:
        with self._locks.setdefault(host, threading.Lock()):
            known = self._cache.get(host, _Fetched())
            floor = _FLOOR if known.keys else _FLOOR_WITHOUT_KEYS
            if known.at > seen or self._clock() < known.at + floor:
                return known  # another thread asked while this one waited, or it is too soon
            try:
                known = _Fetched(self._fetch(host, timeout), self._clock())
            except RefreshError as error:
                known = _Fetched(known.keys, self._clock(), error)
            self._cache[host] = known
            return known

    def _fetch(self, host: str, timeout: timedelta) -> list[_Key]:
        try:
            response = self._http.get(f"https://{host}{_PATH}", timeout=timeout.total_seconds())
        except net.ExchangeError as error:
            raise _unavailable(f"no JWKS from {error}") from error
        keys = _from_jwks(net.json_of(response)) if response.ok else []
        if not keys:
            raise _unavailable(f"{host} publishes no RSA key (status {response.status_code})")
        return keys


def _unavailable(text: str) -> RefreshError:
    return RefreshError(Stage.CLAIMS, Kind.TRANSIENT, text, check=Check.SIGNATURE)


def _signed_by_any(token: AppJWT, keys: Sequence[_Key]) -> bool:
    return any(_signed_by(token, key.public) for key in sorted(keys, key=lambda key: key.kid != token.kid))


def _signed_by(token: AppJWT, key: RSAPublicKey) -> bool:
    try:
        jwt.PyJWS().decode(token.raw.get_secret_value(), key, algorithms=["RS256"])
    except jwt.PyJWTError:
        return False
    return True


def _from_jwks(document: Any) -> list[_Key]:
    found = document.get("keys") if isinstance(document, dict) else None
    keys = []
    for each in found[:_MOST_KEYS] if isinstance(found, list) else []:
        try:
            key = jwt.PyJWK(each, algorithm="RS256").key
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue  # a key of another kind, or a broken one: the others still count
        if isinstance(key, RSAPublicKey):
            kid = each.get("kid")
            keys.append(_Key(kid if isinstance(kid, str) else "", key))
    return keys


def _load_pem(content: bytes) -> list[RSAPublicKey]:
    keys = []
    for block in _PEM_BLOCK.finditer(content):
        certificate = block[1] == b"CERTIFICATE"
        key = x509.load_pem_x509_certificate(block[0]).public_key() if certificate else load_pem_public_key(block[0])
        if isinstance(key, RSAPublicKey):
            keys.append(key)
    if not keys:
        raise ValueError("it holds no RSA public key")
    return keys
