"""Decode an AppJWT and validate its claims against what is expected and the server's clock.

PyJWT decodes. What two parsers could read differently is rejected, although PyJWT accepts it. The signature is left to
liveperson/keys.py.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import jwt
from pydantic import SecretStr

from worker.core.account import Account
from worker.core.redact import leaks


class Check(StrEnum):
    """The checks of a token, in their order."""

    TOKEN_TYPE = "token_type"  # noqa: S105 - a name
    """Of the response field token_type; run by liveperson/sentinel.py."""
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
    """Only with sentinel.verify_signature; run by liveperson/keys.py."""


MAX_TOKEN_LENGTH = 8192
"""Characters. Measured: 427 to 594."""

MAX_LIFETIME = timedelta(hours=24)
"""Documented: one hour. LivePerson may change that; a token for more than a day is no AppJWT."""

CLOCK_LEEWAY = timedelta(minutes=1)
"""Longest time by which `iat` may be ahead of the response's Date: several machines serve one host name."""

USUAL_SCOPE: Final = "msg.consumer"
"""LivePerson's Send API takes no AppJWT without it."""

_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_REQUIRED: Final = ["aud", "azp", "iss", "iat", "exp"]
_UNSUPPORTED_HEADERS = ("crit", "b64")
"""Headers that change the meaning of all others (RFC 7515, 4.1.11; RFC 7797)."""
_MAX_QUOTE_LENGTH = 80
_MISMATCH = "expected {}, got {}"
_NOT_COMPACT = "not a compact JWS"


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected claims. None = unknown, not compared."""

    account_id: str | None = None
    client_id: str | None = None
    scope: str | None = None

    @classmethod
    def of(cls, account: Account) -> "Expected":
        return cls(account.account_id, account.client_id, account.scope)


@dataclass(frozen=True, slots=True)
class AppJWT:
    """A validated token with its header and claims."""

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
        """Return the first 16 hex digits of the token's SHA-256, for logs and readers to compare."""
        return fingerprint(self.raw.get_secret_value())

    @property
    def lifetime(self) -> timedelta:
        return self.exp - self.iat

    def claims(self) -> dict[str, str]:
        """Return header and claims under their own names, as text: for the secret in Vault."""
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

    def fields(self) -> dict[str, str | int]:
        """Return header and claims with the times as numbers: for the log and for a report."""
        return {**self.claims(), "iat": int(self.iat.timestamp()), "exp": int(self.exp.timestamp())}


class TokenRefusedError(Exception):
    """A check rejected the token. A retry can help only if the check is `exp`."""

    def __init__(self, check: Check, text: str) -> None:
        super().__init__(f"{check}: {text}")
        self.check: Final = check


def validate(
    raw: str | AppJWT,
    expected: Expected,
    now: datetime | None,
    forbidden: Collection[SecretStr] = (),
    public_words: Iterable[str] = (),
) -> AppJWT:
    """Decode the token and run all checks; TokenRefusedError names the first that fails.

    :param raw: the token's text, or the result of decoding it before.
    :param now: the clock of the server that sent it; None (no Date) = the token's `iat`.
    :param forbidden: client_secrets that no header or claim may contain: claims are logged and stored in clear.
    :param public_words: words allowed in a claim although a client_secret contains them, as the expected claims are.
    """
    token = raw if isinstance(raw, AppJWT) else _decode(raw)
    if forbidden:
        text, public = " ".join(token.claims().values()), [each for each in (*astuple(expected), *public_words) if each]
        if any(leaks(text, secret.get_secret_value(), public) for secret in forbidden):
            raise TokenRefusedError(Check.FORMAT, "token contains the client_secret")
    now = now or token.iat
    ahead = token.iat - now
    # later checks rely on earlier ones
    for check, passed, template, values in (
        (Check.ALG, token.alg == "RS256", _MISMATCH, ("RS256", token.alg)),
        (Check.TYP, token.typ.upper() in ("JWT", ""), _MISMATCH, ("JWT", token.typ)),
        (Check.AUD, expected.account_id in (None, *token.aud), _MISMATCH, (expected.account_id, token.aud)),
        (Check.AZP, expected.client_id in (None, token.azp), _MISMATCH, (expected.client_id, token.azp)),
        (Check.ISS, token.iss.lower() == "sentinel", _MISMATCH, ("Sentinel", token.iss)),
        (Check.EXP, token.exp > now, "expired at {} (now {})", (token.exp, now)),
        (Check.IAT, ahead <= CLOCK_LEEWAY, "issued in the future ({}, now {})", (token.iat, now)),
        (
            Check.LIFETIME,
            timedelta(0) < token.lifetime <= MAX_LIFETIME,
            _MISMATCH,
            ("more than 0, at most 24 h", token.lifetime),
        ),
        (Check.SCOPE, expected.scope in (None, *token.scope.split()), _MISMATCH, (expected.scope, token.scope)),
    ):
        if not passed:
            raise TokenRefusedError(check, template.format(*map(_format, values)))
    return token


def other_client_id(raw: str, expected: Expected, now: datetime) -> str | None:
    """Return the client_id of a token that is valid, but was issued to another app of the account."""
    try:
        token = validate(raw, Expected(expected.account_id), now)
    except TokenRefusedError:
        return None
    return token.azp if token.azp != expected.client_id else None


class _StrictJWT(jwt.PyJWT):
    """PyJWT that parses the claims as strictly as the header is parsed here."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        return _parse_object(decoded["payload"])


_JWT: Final = _StrictJWT()


def _decode(raw: str) -> AppJWT:
    if len(raw) > MAX_TOKEN_LENGTH:
        raise _malformed(f"expected at most {MAX_TOKEN_LENGTH} characters, got {len(raw)}")
    if not _COMPACT_JWS.fullmatch(raw):
        raise _malformed(_NOT_COMPACT)
    try:
        first = raw.partition(".")[0]
        header = _parse_object(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
        if not header.keys().isdisjoint(_UNSUPPORTED_HEADERS):
            raise _malformed(f"expected no header {' or '.join(_UNSUPPORTED_HEADERS)}, got one")
        kid = _text(header, "kid", default="")
        # verify_signature=False also turns off PyJWT's claim checks, which would use this machine's clock
        claims = _JWT.decode_complete(raw, options={"verify_signature": False, "require": _REQUIRED})["payload"]
    except jwt.MissingRequiredClaimError as error:
        raise _malformed(f"expected a claim {error.claim}, got none") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _malformed(_NOT_COMPACT) from None
    aud = claims["aud"]
    return AppJWT(
        raw=SecretStr(raw),
        kid=kid,
        alg=_text(header, "alg"),
        typ=_text(header, "typ", default=""),
        aud=tuple(_text({"aud": each}, "aud") for each in (aud if isinstance(aud, list) else [aud])),
        azp=_text(claims, "azp"),
        scope=_text(claims, "scope", default=""),
        iss=_text(claims, "iss"),
        iat=_time(claims, "iat"),
        exp=_time(claims, "exp"),
    )


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _malformed("expected a JSON header and JSON claims, got something else")
    return value


def _reject_duplicates(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate member names (RFC 7519, 4): parsers disagree on which wins."""
    value = dict(members)
    if len(value) < len(members):
        raise _malformed("expected each name once in an object, got one twice")
    return value


def _reject_constant(constant: str) -> None:
    """Reject NaN and Infinity, which are not JSON but accepted by Python."""
    raise ValueError(constant)


def _text(values: dict[str, Any], key: str, default: str | None = None) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or not value.isprintable():
        raise _malformed(f"expected {key} as printable text, got {type(value).__name__}")
    return value


def _time(values: dict[str, Any], key: str) -> datetime:
    value = values[key]
    if type(value) is not int:  # no bool, no float: 1e400 and NaN are floats too
        raise _malformed(f"expected {key} as a whole number, got {type(value).__name__}")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        raise _malformed(f"expected {key} as a time, got a number out of range") from None


def _malformed(text: str) -> TokenRefusedError:
    return TokenRefusedError(Check.FORMAT, text)


def fingerprint(raw: str) -> str:
    return hashlib.sha256(raw.encode(errors="replace")).hexdigest()[:16]


def utc(moment: datetime) -> str:
    """Format a moment by RFC 3339, in UTC and whole seconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _format(value: object) -> str:
    match value:
        case datetime():
            return utc(value)
        case tuple():
            return _truncate(" ".join(value))
        case _:
            return _truncate(str(value))


def _truncate(text: str) -> str:
    """Shorten text of the other side, which could flood a log."""
    return (text if len(text) <= _MAX_QUOTE_LENGTH else f"{text[:_MAX_QUOTE_LENGTH]}…") or "nothing"
