"""Raw text + what was expected + now -> AppJWT, or the check that refused it.

The signature is left to liveperson/keys.py. What could be read in two ways is refused, which PyJWT does not do.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import SecretStr

from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.redact import repeats


class Check(StrEnum):
    """The checks of a token, in the order they are made."""

    FORMAT = "format"
    ALG = "alg"
    TYP = "typ"
    AUD = "aud"
    AZP = "azp"
    ISS = "iss"
    EXP = "exp"
    IAT = "iat"
    LIFETIME = "lifetime"
    SCOPE = "scope"
    SIGNATURE = "signature"
    """Made only where sentinel.verify asks for it, by liveperson/keys.py."""


LONGEST_TOKEN = 8192
"""Characters. Measured: 427 to 594."""

LONGEST_LIFE = timedelta(hours=24)
"""Documented: one hour. A longer one can be LivePerson's change; beyond a day it is no AppJWT."""

CLOCK_LEEWAY = timedelta(minutes=1)
"""How far iat may lie ahead of the Date of the same server's answer: several machines stand behind one host."""

_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_REQUIRED = ("aud", "azp", "iss", "iat", "exp")
_CHANGES_THE_REST = ("crit", "b64")
"""Headers that say how all the others are to be read (RFC 7515, 4.1.11; RFC 7797)."""
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say of itself. None = not known, so not compared."""

    account_id: str | None = None
    client_id: str | None = None
    scope: str | None = None

    @classmethod
    def of(cls, account: Account) -> "Expected":
        return cls(account.account_id, account.client_id, account.scope)


@dataclass(frozen=True, slots=True)
class AppJWT:
    """A token that passed the checks, and what it says of itself."""

    raw: SecretStr = field(repr=False)
    kid: str
    alg: str
    typ: str
    aud: tuple[str, ...]
    azp: str
    scope: str
    iss: str
    iat: datetime
    exp: datetime

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the token's SHA-256: what logs and readers may compare."""
        return fingerprint(self.raw.get_secret_value())

    @property
    def lifetime(self) -> timedelta:
        return self.exp - self.iat

    def claims(self) -> dict[str, str]:
        """Header and claims under their own names, as text: for the log line and for the secret in Vault."""
        return {
            "kid": self.kid,
            "alg": self.alg,
            "typ": self.typ,
            "aud": " ".join(self.aud),
            "azp": self.azp,
            "scope": self.scope,
            "iss": self.iss,
            "iat": str(int(self.iat.timestamp())),
            "exp": str(int(self.exp.timestamp())),
        }


class TokenRefusedError(RefreshError):
    """A check refused the token. `exp` alone can pass by itself: the answer may have come too late."""

    def __init__(self, check: Check, expected: str, got: str) -> None:
        super().__init__(Stage.CLAIMS, Kind.LASTING, f"{check}: expected {expected}, got {got}", check=check)


def check(raw: str | AppJWT, expected: Expected, now: datetime | None, untold: Iterable[SecretStr] = ()) -> AppJWT:
    """Take the token apart and check it; TokenRefusedError says which check refused, what it expected and what came.

    :param raw: its text; or, where it was taken apart before, what came of that.
    :param now: the clock of the server that the text came from; None (it sent no Date) = the token's own iat.
    :param untold: client_secrets, which it must not tell: claims are logged, and stand beside the token in Vault.
    """
    token = raw if isinstance(raw, AppJWT) else _decode(raw)
    if any(repeats(" ".join(token.claims().values()), secret.get_secret_value()) for secret in untold):
        raise TokenRefusedError(Check.FORMAT, "nothing of the client_secret", "it in a header or claim")
    now = now or token.iat
    ahead = token.iat - now
    # Later checks rest on earlier ones, and the first that fails is the one reported.
    for name, passed, wanted, got in (
        (Check.ALG, token.alg == "RS256", ("RS256",), token.alg),
        (Check.TYP, token.typ.upper() in ("JWT", ""), ("JWT",), token.typ),
        (Check.AUD, expected.account_id in (None, *token.aud), (expected.account_id,), token.aud),
        (Check.AZP, expected.client_id in (None, token.azp), (expected.client_id,), token.azp),
        (Check.ISS, token.iss.lower() == "sentinel", ("Sentinel",), token.iss),
        (Check.EXP, token.exp > now, ("an end after", now), token.exp),
        (Check.IAT, ahead <= CLOCK_LEEWAY, ("an issue before", now), token.iat),
        (Check.LIFETIME, timedelta(0) < token.lifetime <= LONGEST_LIFE, ("more than 0, at most 24 h",), token.lifetime),
        (Check.SCOPE, expected.scope in (None, *token.scope.split()), (expected.scope,), token.scope),
    ):
        if not passed:
            raise TokenRefusedError(name, " ".join(map(_said, wanted)), _shown(got))
    return token


def _decode(raw: str) -> AppJWT:
    if len(raw) > LONGEST_TOKEN:
        raise TokenRefusedError(Check.FORMAT, f"at most {LONGEST_TOKEN} characters", f"{len(raw)}")
    if not _COMPACT_JWS.fullmatch(raw):
        raise TokenRefusedError(Check.FORMAT, "three base64url parts", "something else")
    try:
        texts = [base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True) for part in raw.split(".")]
    except ValueError:
        raise TokenRefusedError(Check.FORMAT, "three base64url parts", "something else") from None
    header, claims = map(_object, texts[:2])
    if not header.keys().isdisjoint(_CHANGES_THE_REST):
        raise TokenRefusedError(Check.FORMAT, f"no header {' or '.join(_CHANGES_THE_REST)}", "one")
    for key in _REQUIRED:
        if claims.get(key) is None:
            raise TokenRefusedError(Check.FORMAT, f"a claim {key}", "none")
    aud = claims["aud"]
    return AppJWT(
        raw=SecretStr(raw),
        kid=_text(header, "kid", default=""),
        alg=_text(header, "alg"),
        typ=_text(header, "typ", default=""),
        aud=tuple(_text({"aud": each}, "aud") for each in (aud if isinstance(aud, list) else [aud])),
        azp=_text(claims, "azp"),
        scope=_text(claims, "scope", default=""),
        iss=_text(claims, "iss"),
        iat=_time(claims, "iat"),
        exp=_time(claims, "exp"),
    )


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_once_each, parse_constant=_no_json)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TokenRefusedError(Check.FORMAT, "a JSON header and JSON claims", "something else")
    return value


def _once_each(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """RFC 7519, 4: refuse a name that comes twice, or take the last. Readers of the token may differ in it."""
    value = dict(members)
    if len(value) < len(members):
        raise TokenRefusedError(Check.FORMAT, "each name once in an object", "one twice")
    return value


def _no_json(constant: str) -> None:
    """NaN and Infinity, which Python would take."""
    raise ValueError(constant)


def _text(values: dict[str, Any], key: str, default: str | None = None) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or not value.isprintable():
        raise TokenRefusedError(Check.FORMAT, f"{key} as printable text", type(value).__name__)
    return value


def _time(values: dict[str, Any], key: str) -> datetime:
    value = values[key]
    if type(value) is not int:  # no bool, no float: 1e400 and NaN are floats too
        raise TokenRefusedError(Check.FORMAT, f"{key} as a whole number", type(value).__name__)
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        raise TokenRefusedError(Check.FORMAT, f"{key} as a time", "a number out of range") from None


def fingerprint(raw: str) -> str:
    return hashlib.sha256(raw.encode(errors="replace")).hexdigest()[:16]


def utc(moment: datetime) -> str:
    """RFC 3339, whole seconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _said(value: object) -> str:
    match value:
        case datetime():
            return utc(value)
        case tuple():
            return " ".join(value)
        case _:
            return str(value)


def _shown(value: object) -> str:
    """A claim is the other side's text: cut, so that no one's log is flooded by it."""
    text = _said(value)
    return (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…") or "nothing"
