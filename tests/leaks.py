"""Search output for secrets, independently of the worker's redactor."""

import base64
import html
import re
from collections.abc import Iterator
from urllib.parse import unquote

PIECE = 12
"""Characters of a secret in a row that are a leak."""

MADE: set[str] = set()
"""Every client_secret that `tests.builders` made for the test that runs."""

_LOOKS_SECRET = re.compile(r"eyJ[A-Za-z0-9_-]{8,}|\b(?:hv[sb]\.|[sb]\.)[A-Za-z0-9]{20,}")
"""A JWT, and a Vault token, which only the worker ever sees."""
_CODE_POINT = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
_BACKSLASH = re.compile(r"\\(.)")


def leaks(text: str, secrets: list[str]) -> list[str]:
    """Return the places in a text with a piece of a secret, plain or encoded, or anything that looks like one."""
    forms = [form for secret in secrets for form in _forms(secret)]
    pieces = {form[i : i + PIECE] for form in forms for i in range(len(form) - PIECE + 1)}
    found: list[str] = []
    for reading in _readings(text):
        found += (
            reading[max(at - 40, 0) : at + 40] for at in range(len(reading)) if reading[at : at + PIECE] in pieces
        )
        found += _LOOKS_SECRET.findall(reading)
    return found


def _readings(text: str) -> Iterator[str]:
    """Yield the text as it is, and as it reads once one or two kinds of escapes are undone."""
    decoders = (
        unquote,
        html.unescape,
        lambda each: _CODE_POINT.sub(lambda match: chr(int(match[1] or match[2], 16)), each),
        lambda each: _BACKSLASH.sub(r"\1", each),
        lambda each: each.replace("\0", ""),
    )
    once = {decoder(text) for decoder in decoders}
    twice = {decoder(each) for decoder in decoders for each in once - {text}}
    yield from {text} | once | twice


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode()
    yield from (secret, raw.hex(), raw.hex().upper())
    for shift in range(3):  # base64 depends on where in the text the secret begins
        encoded = base64.b64encode(bytes(shift) + raw).decode()
        yield encoded[4:-4]
        yield encoded[4:-4].replace("+", "-").replace("/", "_")
