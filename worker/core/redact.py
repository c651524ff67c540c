"""Takes secrets out of a text that somebody else wrote, before anybody may see it."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

GONE = "[redacted]"

_SHORTEST_PIECE = 6
"""Characters of a known secret in a row that are taken out, for a server may echo a part of it."""

_LOOKS_SECRET = re.compile(
    r"""
      eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,2}        # a JWT, or its head: {" in base64url
    | \b(?:hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}               # a token of Vault or OpenBao
    | (?<=client_secret=)(?!VALUE$)[^&\s"']+ | (?<=secret_id=)[^&\s"']+  # VALUE is what --check has for a remedy
    | (?<="client_secret":")[^"]* | (?<="client_secret":\ ")[^"]*
    | (?<="secret_id":")[^"]* | (?<="secret_id":\ ")[^"]*
    """,
    re.VERBOSE,
)


def redacted(text: str, *secrets: str) -> str:
    """The text on one line without these secrets, whole, in part or encoded, and without all that looks like one."""
    return " ".join(redacted_lines(text, *secrets).split())


def redacted_lines(text: str, *secrets: str) -> str:
    """The same with its lines and spaces as they stand; a character that would steer a terminal becomes a space."""
    for secret in secrets:
        for form in _forms(secret):
            text = _without_pieces(text, form)
    return "".join(each if each.isprintable() or each == "\n" else " " for each in _LOOKS_SECRET.sub(GONE, text))


def cleaned(value: Any) -> Any:
    """A field of a log line or a report, redacted as deep as it goes; what JSON does not know becomes a text."""
    match value:
        case str():
            return redacted(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {redacted(str(key)): cleaned(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [cleaned(each) for each in value]
        case _:
            return redacted(repr(value))


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode()
    yield secret
    yield from {quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]} - {secret}
    for shift in range(3):  # where the secret begins decides what its base64 looks like
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(b"\0" * shift + raw).decode().rstrip("=")
            yield encoded[shift and 4 : len(encoded) - len(encoded) % 4]


def _without_pieces(text: str, secret: str) -> str:
    shortest = min(_SHORTEST_PIECE, len(secret))
    if not shortest:
        return text
    pieces = {secret[i : i + shortest] for i in range(len(secret) - shortest + 1)}
    kept: list[str] = []
    at = hidden_to = 0
    while at < len(text):
        if text[at : at + shortest] in pieces:
            if at >= hidden_to:
                kept.append(GONE)
            hidden_to = at + shortest
        if at >= hidden_to:
            kept.append(text[at])
        at += 1
    return "".join(kept)
