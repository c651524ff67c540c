"""Tokens, accounts and outcomes for tests, and LivePerson's published sample token."""

import base64
import functools
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pydantic import SecretStr

from tests.leaks import MADE
from worker.core import account, appjwt
from worker.core.account import Absence, Account
from worker.core.appjwt import AppJWT, Expected
from worker.core.outcome import Outcome
from worker.core.plan import TrackedToken, Validity
from worker.core.unchecked import StoredSecret

SAMPLE: Final = (
    "eyJraWQiOiJhcHBqd3QtMTMtMDUtMTciLCJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJsZTgxODIzMTE4IiwiYXpwIjoiNzU1ODhl"
    "MTgtMDIxMy00ZTMzLTgxNzQtODgzYWNhYzdlM2M0Iiwic2NvcGUiOiJtc2cuY29uc3VtZXIiLCJpc3MiOiJTZW50aW5lbCIsImV4cCI6MTUyNDY0Nj"
    "I3MCwiaWF0IjoxNTI0NjQyNjcwfQ.aC1EbVQDIKJkrMgfoqhDqo5KZVMILTGP5UnK_4lUJQIfpFcrymvQKU9E6zt_WDhWmM2SOOcr1sz4u5xVZ9rMW"
    "ZciDW_9KofEM2NDgVw1EVBxAIgGYeO0sbE9o--HKjk9DHZvukJkQFhYaHMDnj6ay4BNUqTJpDn6y3XQY7eh7rM"
)
"""The token in LivePerson's page: real, and ended in 2018."""

ACCOUNT: Final = "le81823118"
CLIENT_ID: Final = "75588e18-0213-4e33-8174-883acac7e3c4"
HOUR: Final = timedelta(hours=1)
ISSUED: Final = datetime(2018, 4, 25, 7, 51, 10, tzinfo=UTC)
"""The moment at which the sample was issued, and by default every token made here."""

HEADER: Final[Mapping[str, object]] = {"kid": "appjwt-13-05-17", "typ": "JWT", "alg": "RS256"}
CLAIMS: Final[Mapping[str, object]] = {
    "aud": ACCOUNT,
    "azp": CLIENT_ID,
    "scope": "msg.consumer",
    "iss": "Sentinel",
    "exp": int((ISSUED + HOUR).timestamp()),
    "iat": int(ISSUED.timestamp()),
}


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""As a claim or header: leave it out."""


def make_token(header: Mapping[str, object] | None = None, **claims: object) -> str:
    """Return a signed token like the sample, with these header fields and claims instead."""
    return _signed(json.dumps(_changed(HEADER, header or {})), json.dumps(_changed(CLAIMS, claims)))


def token_of(issued: datetime, life: timedelta = HOUR, **claims: object) -> str:
    """Return a signed token that lives from `issued` on, for so long."""
    return make_token(None, iat=int(issued.timestamp()), exp=int((issued + life).timestamp()), **claims)


def app_jwt(issued: datetime = ISSUED, life: timedelta = HOUR, **claims: object) -> AppJWT:
    """Return the same, checked."""
    return appjwt.validate(token_of(issued, life, **claims), Expected(), issued)


def compact_jws(header: str | bytes, claims: str | bytes, signature: bytes = b"any") -> str:
    """Join three parts of any text: for tokens that no library would make."""
    return ".".join(_base64url(part) for part in (header, claims, signature))


def client_secret() -> str:
    """Return a new one; a test that lets it be printed fails."""
    made = secrets.token_hex(13)
    MADE.add(made)
    return made


def account_secret(**fields: object) -> dict[str, object]:
    """Return an account's secret as in Vault, with these fields instead; the client_secret is new each time."""
    return _changed({"client_id": CLIENT_ID, "client_secret": client_secret()}, fields)


def parse_account(name: str, secret: Mapping[str, object]) -> Account:
    """Parse an account's secret that is neither disabled nor invalid."""
    return usable(account.parse(name, secret))


def usable(found: Account | Absence) -> Account:
    """Return an account that is expected to be there."""
    assert isinstance(found, Account), found
    return found


def make_account(name: str = ACCOUNT, **fields: object) -> Account:
    """Return an account with a new client_secret; the fields are those of the dataclass."""
    values: dict[str, object] = {
        "account_id": name.partition("/")[0],
        "client_id": CLIENT_ID,
        "client_secret": SecretStr(client_secret()),
    }
    return Account(name=name, **(values | fields))  # type: ignore[arg-type] # a test may break a type on purpose


def _changed(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in {**values, **changes}.items() if value is not ABSENT}


def _signed(header: str, claims: str) -> str:
    """Sign by hand, as a JWT library rightly refuses to make what some tests want."""
    text = compact_jws(header, claims, b"").rstrip(".")
    return f"{text}.{_base64url(_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64url(part: str | bytes) -> str:
    data = part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@functools.cache
def _key() -> rsa.RSAPrivateKey:
    """Made once per run: it takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def tracked(left: float, refresh_in: float = 600.0, planned_in: float | None = None) -> TrackedToken:
    """Return an hour's token with so many seconds left, at the steady moment 100."""
    refresh_at = 100.0 + refresh_in
    planned_at = refresh_at if planned_in is None else 100.0 + planned_in
    return TrackedToken("f" * 16, Validity(100.0 + left - 3600, 100.0 + left), refresh_at, planned_at)


def stored_secret(raw: str | None = None, **fields: object) -> StoredSecret:
    """Return the answer of a read at a token's path when the sample was issued: this token, or nothing ever written."""
    values: dict[str, object] = {
        "version": 1 if raw else 0,
        "raw": SecretStr(raw) if raw else None,
        "sentinel_host": None,
        "refresh_at": None,
        "managed": raw is not None,
        "deletion_time": None,
        "now": ISSUED,
    }
    return StoredSecret(**(values | fields))  # type: ignore[arg-type] # a test may break a type on purpose


def error_of(outcome: Outcome) -> tuple[object, ...]:
    """Stage, kind, status and check of a failed attempt's error."""
    error = outcome.error
    assert error is not None
    return error.stage, error.kind, error.status, error.check
