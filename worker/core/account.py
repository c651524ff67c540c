"""An account as its secret in Vault describes it, and what makes that secret valid."""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Literal, get_args

from pydantic import SecretStr

from worker.core.errors import InvalidAccountError

_ACCOUNT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME_SEGMENT = re.compile(r"[A-Za-z0-9_@.+=-]{1,128}")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_MAX_NAME_LENGTH = 512
_MAX_VALUE_LENGTH = 1024
_SIMILARITY_CUTOFF = 0.85

ApiVersion = Literal["1.0", "2.0"]
"""Of the token request."""
API_VERSIONS: tuple[ApiVersion, ...] = get_args(ApiVersion)


class Absence(StrEnum):
    """Why an account has nothing to refresh: a normal state, no error."""

    DISABLED = "disabled"
    """Its secret says `enabled = false`."""
    REMOVED = "removed"
    """There is no secret."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    """The path below the accounts prefix."""
    account_id: str
    client_id: str
    client_secret: SecretStr = field(repr=False)
    sentinel_domain: str | None = None
    """Host, with its port where that is not 443; skips the Domain API."""
    api_version: ApiVersion | None = None
    """None = as the settings say."""
    scope: str | None = None
    """The one scope that the token must contain."""
    unknown_fields: tuple[str, ...] = ()
    """Names of fields that mean nothing here: notes, or misspelt."""

    def digest(self, key: bytes) -> bytes:
        """Return a digest that changes with each edit, and discloses nothing without the key."""
        values = (getattr(self, each.name) for each in fields(self))
        plain = [value.get_secret_value() if isinstance(value, SecretStr) else value for value in values]
        return hashlib.blake2b(repr(plain).encode(), key=key).digest()


_KNOWN_FIELDS = {"enabled", *(each.name for each in fields(Account))} - {"name", "unknown_fields"}


def join_path(*segments: str) -> str:
    """Join the parts of a path in Vault; an empty one, the prefix of a mount's root, is left out."""
    return "/".join(filter(None, segments))


def is_name(name: str) -> bool:
    """Return True if this is an account's name: a relative path that means the same in a URL and in Vault."""
    segments = name.split("/")
    return len(name) <= _MAX_NAME_LENGTH and all(_NAME_SEGMENT.fullmatch(s) and s.strip(".") for s in segments)


def check_name(name: str) -> None:
    """InvalidAccountError unless it is an account's name."""
    if not is_name(name):
        raise InvalidAccountError(
            f"{name[:80]!r}: an account's name holds letters, digits and -_@.+= between slashes only"
        )


def parse(name: str, secret: Mapping[str, object]) -> Account | Absence:
    """Read an account's secret.

    InvalidAccountError names the field, what is wrong and what is right, never the value found.
    """
    enabled = secret.get("enabled", True)
    if enabled in (False, "false"):
        return Absence.DISABLED
    if enabled not in (True, "true"):
        raise InvalidAccountError('enabled: must be true or false (or "true", "false")')
    account_id = _text(secret, "account_id") or name.partition("/")[0]
    if not _ACCOUNT_ID.fullmatch(account_id):
        raise InvalidAccountError(
            "account_id: must be 1 to 64 letters, digits, - or _ (default: the name's first part)"
        )
    requested = _text(secret, "api_version")
    api_version = next((known for known in API_VERSIONS if known == requested), None)
    if requested != api_version:
        raise InvalidAccountError(f"api_version: must be one of {', '.join(API_VERSIONS)}")
    return Account(
        name=name,
        account_id=account_id,
        client_id=_required(secret, "client_id"),
        client_secret=SecretStr(_required(secret, "client_secret")),
        api_version=api_version,
        sentinel_domain=_text(secret, "sentinel_domain"),
        scope=_text(secret, "scope"),
        unknown_fields=tuple(sorted(secret.keys() - _KNOWN_FIELDS)),
    )


def _required(secret: Mapping[str, object], key: str) -> str:
    value = _text(secret, key)
    if value is None:
        others = {present.lower().replace("-", "_"): present for present in secret if present not in _KNOWN_FIELDS}
        near = difflib.get_close_matches(key, others, n=1, cutoff=_SIMILARITY_CUTOFF)
        hint = f" (there is {others[near[0]]!r}: rename it)" if near else ""
        raise InvalidAccountError(f"{key}: missing or empty{hint}")
    return value


def _text(secret: Mapping[str, object], key: str) -> str | None:
    value = secret.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidAccountError(f"{key}: must be a string, is {_JSON_TYPES[type(value)]}")
    if not _VISIBLE.fullmatch(value):
        raise InvalidAccountError(f"{key}: holds a space, a line break or a character outside ASCII")
    if len(value) > _MAX_VALUE_LENGTH:
        raise InvalidAccountError(f"{key}: is longer than {_MAX_VALUE_LENGTH} characters")
    return value


_JSON_TYPES = {int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}
