"""Verify signatures, by pinned keys from a PEM file or by those that Sentinel publishes as a JWKS.

A `kid` only decides which key is tried first: LivePerson's published sample tokens share one and have different keys.
"""

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import requests
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import RSAAlgorithm

from worker import net
from worker.core.appjwt import AppJWT, Check, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage

_PATH = "/sentinel/well-known/jwks"
_CACHE_TTL = 3600.0
_MIN_FETCH_INTERVAL = 60.0
"""Seconds between two fetches from one host, whatever tokens come: an unknown key must not cause a storm."""
_MIN_FETCH_INTERVAL_WITHOUT_KEYS = 5.0
"""The same while no key is known: no token can be published meanwhile."""
_MAX_KEYS = 32
"""Of one host: each may be tried on each token."""
_MIN_KEY_BITS = 2048
"""Bits under which a key is reported. LivePerson's own sample token is signed by one of 1024."""
_PEM_BLOCK = re.compile(rb"-----BEGIN (PUBLIC KEY|CERTIFICATE)-----.+?-----END \1-----", re.DOTALL)


log = structlog.get_logger()


class _AnyKeyLength(RSAAlgorithm):
    """RS256 without the library's warning about a short key at every token."""

    def check_key_length(self, key: Any) -> None:
        del key


_JWS = jwt.PyJWS(algorithms=[])
_JWS.register_algorithm("RS256", _AnyKeyLength(RSAAlgorithm.SHA256))


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    public: RSAPublicKey


@dataclass(frozen=True, slots=True)
class _CachedKeys:
    keys: Sequence[_Key] = ()
    at: float = float("-inf")
    error: RefreshError | None = None
    """Why the latest fetch failed; `keys` are then the previous ones."""


class PinnedKeys:
    """The public keys and certificates of a PEM file, read once."""

    def __init__(self, file: Path) -> None:
        """Load the keys; ValueError or OSError if the file has no RSA key."""
        self._keys = [_Key("", each) for each in _load_pem(file.read_bytes())]
        self._file = file
        _report_weak(self._keys, str(file), set())

    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None:
        """Raise TokenRefusedError unless one of the keys made the signature."""
        del host, timeout
        if not _signed_by_any(token, self._keys):
            raise TokenRefusedError(Check.SIGNATURE, f"expected one by a key in {self._file}, got another")

    def retain_hosts(self, hosts: set[str]) -> None:
        """Do nothing: the keys are of no host."""


class PublishedKeys:
    """The keys that each Sentinel host publishes, cached."""

    def __init__(self, http: requests.Session, *, clock: Callable[[], float]) -> None:
        self._http = http
        self._clock = clock
        self._locks: dict[str, threading.Lock] = {}
        """One per host: a slow host delays no other."""
        self._cache: dict[str, _CachedKeys] = {}
        self._reported: set[tuple[str, int]] = set()

    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None:
        """Raise TokenRefusedError unless one of the host's keys made the signature; RefreshError if it has none.

        An unknown signature causes another fetch, at most once a minute.
        """
        cached = self._cache.get(host, _CachedKeys())
        if self._clock() < cached.at + _CACHE_TTL and _signed_by_any(token, cached.keys):
            return
        cached = self._fetch_if_stale(host, timeout, seen=cached.at)
        if not _signed_by_any(token, cached.keys):
            text = f"expected one by a key that {host} publishes, got kid {token.kid[:80]!r}"
            refused = TokenRefusedError(Check.SIGNATURE, text)
            raise cached.error or refused

    def retain_hosts(self, hosts: set[str]) -> None:
        """Forget the keys of all other hosts."""
        for host in self._cache.keys() - hosts:
            self._cache.pop(host, None)
            self._locks.pop(host, None)
        self._reported = {each for each in self._reported if each[0] in self._cache}

    def _fetch_if_stale(self, host: str, timeout: timedelta, seen: float) -> _CachedKeys:
        with self._locks.setdefault(host, threading.Lock()):
            cached = self._cache.get(host, _CachedKeys())
            min_interval = _MIN_FETCH_INTERVAL if cached.keys else _MIN_FETCH_INTERVAL_WITHOUT_KEYS
            if cached.at > seen or self._clock() < cached.at + min_interval:
                return cached  # another thread fetched them meanwhile, or it is too soon
            try:
                cached = _CachedKeys(self._fetch(host, timeout), self._clock())
            except RefreshError as error:
                cached = _CachedKeys(cached.keys, self._clock(), error)
            self._cache[host] = cached
            return cached

    def _fetch(self, host: str, timeout: timedelta) -> list[_Key]:
        try:
            response = self._http.get(f"https://{host}{_PATH}", timeout=timeout.total_seconds())
        except net.ExchangeError as error:
            raise _unavailable(f"no JWKS from {error}", host) from error
        keys = _from_jwks(net.parse_json(response)) if response.ok else []
        if not keys:
            raise _unavailable(f"{host} publishes no RSA key (status {response.status_code})", host)
        _report_weak(keys, host, self._reported)
        return keys


def _unavailable(text: str, host: str) -> RefreshError:
    return RefreshError(Stage.CLAIMS, Kind.TRANSIENT, text, check=Check.SIGNATURE, host=host)


def _report_weak(keys: Iterable[_Key], source: str, reported: set[tuple[str, int]]) -> None:
    """Log each size under 2048 bits, once."""
    sizes = {(source, key.public.key_size) for key in keys if key.public.key_size < _MIN_KEY_BITS}
    for _, bits in sorted(sizes - reported):
        log.warning("key.weak", bits=bits, source=source)
    reported |= sizes


def _signed_by_any(token: AppJWT, keys: Sequence[_Key]) -> bool:
    return any(_signed_by(token, key.public) for key in sorted(keys, key=lambda key: key.kid != token.kid))


def _signed_by(token: AppJWT, key: RSAPublicKey) -> bool:
    try:
        _JWS.decode(token.raw.get_secret_value(), key, algorithms=["RS256"])
    except jwt.PyJWTError:
        return False
    return True


def _from_jwks(document: Any) -> list[_Key]:
    found = document.get("keys") if isinstance(document, dict) else None
    keys = []
    for each in found[:_MAX_KEYS] if isinstance(found, list) else []:
        try:
            key = jwt.PyJWK(each, algorithm="RS256").key
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue  # of another type, or broken: the others still count
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
        raise ValueError("no RSA public key in it")
    return keys
