"""Takes secrets out of a text that somebody else wrote, before anybody may see it.

Escapes (of URLs, JSON, HTML) are taken off layer by layer, as whoever reads the text could do; what shows a secret at
any layer goes. Known secrets, which are visible ASCII, are also looked for in hex and base64.
"""

import html
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

GONE = "[redacted]"

_SHORTEST_PIECE = 6
"""Characters of a known secret in a row that are taken out, for a server may echo a part of it."""

_NO_CHANCE = 12
"""Characters in a row that are no chance: where something is refused for it, not only hidden."""

_LAYERS = 4
"""Deep enough for JSON in JSON in a URL."""

_LOOKS_SECRET = tuple(
    re.compile(pattern, re.VERBOSE)
    for pattern in (  # apart, and each with few beginnings: together they take six times as long
        r"""eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,2}  # a JWT, or its head: {" in base64url""",
        r"""\b(?:hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}  # a token of Vault or OpenBao""",
        r"""[sStT](?i:ecret|ecret_id|oken)  # and whatever before it in the name; @FILE is what --check has for a remedy
            (?: =(?P<plain>(?!@FILE$)[^\s&"',;]+) | "\s*:\s*"(?P<double>[^"]*) | '\s*:\s*'(?P<single>[^']*) )""",
        r"""-[vV](?i:ault-token)\s*:\s*(?P<header>[^\s"']+)""",
    )
)

_ESCAPE = re.compile(
    r"""
      (?: % | %u(?=[0-9a-f]{4}) | \\x | \\u(?=[0-9a-f]{4}) ) (?P<hex> (?<=u)[0-9a-f]{4} | (?<!u)[0-9a-f]{2} )
    | \\(?P<plain>["'\\/])
    | &(?: \#\d{1,7} | \#x[0-9a-f]{1,6} | [a-z][a-z0-9]{1,30} );
    | (?P<nothing>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff])  # as UTF-16 has it between the letters
    """,
    re.VERBOSE | re.IGNORECASE,
)

_Pieces = Mapping[int, set[str]]
"""Pieces of secrets, by their length."""


def redacted(text: str, *secrets: str) -> str:
    """The text on one line without these secrets, whole, in part or encoded, and without all that looks like one."""
    return " ".join(redacted_lines(text, *secrets).split())


def redacted_lines(text: str, *secrets: str) -> str:
    """The same with its lines and spaces as they stand; a character that would steer a terminal becomes a space."""
    if secrets or _ESCAPE.search(text) or any(each.search(text) for each in _LOOKS_SECRET):  # most texts hold none
        hidden = _hidden(text, _pieces(secrets))
        runs = groupby(zip(hidden, text, strict=True), key=itemgetter(0))
        text = "".join(GONE if gone else "".join(map(itemgetter(1), run)) for gone, run in runs)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def repeats(text: str, secret: str) -> bool:
    """Whether the text tells so much of the secret, in whatever form, that it cannot be chance."""
    if len(secret) < _NO_CHANCE:
        return False
    forms = list(_forms(secret))
    return any(_tells(layer, form) for layer, _ in _layers(text) for form in forms)


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


def _tells(text: str, form: str) -> bool:
    """Whether there is a piece of the form in the text that is no chance."""
    width = min(_NO_CHANCE, len(form))
    half = width // 2
    # each piece has in it a half that begins at a multiple of its length: mostly these few tell that there is none
    if not any(form[at : at + half] in text for at in range(0, len(form) - half + 1, half or 1)):
        return False
    return width > 0 and any(form[at : at + width] in text for at in range(len(form) - width + 1))


def _hidden(text: str, pieces: _Pieces) -> bytearray:
    """For each character whether it must not be seen."""
    hidden = bytearray(len(text))
    for layer, spans in _layers(text):
        for begin, end in _found(layer, pieces):
            if begin < end:
                first, last = spans[begin][0], spans[end - 1][1]
                hidden[first:last] = b"\1" * (last - first)
    return hidden


def _found(text: str, pieces: _Pieces) -> Iterator[tuple[int, int]]:
    for size, known in pieces.items():
        yield from ((at, at + size) for at in range(len(text) - size + 1) if text[at : at + size] in known)
    for pattern in _LOOKS_SECRET:
        yield from (match.span(match.lastgroup or 0) for match in pattern.finditer(text))


def _layers(text: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The text, and what is left with each layer of escapes taken off; where each of its characters comes from."""
    spans = [(at, at + 1) for at in range(len(text))]
    yield text, spans
    for _ in range(_LAYERS):
        parts: list[str] = []
        origins: list[tuple[int, int]] = []
        at = 0
        for match in _ESCAPE.finditer(text):
            begin, end = match.span()
            read = _read(match)
            parts += text[at:begin], read
            origins += spans[at:begin] + [(spans[begin][0], spans[end - 1][1])] * len(read)
            at = end
        if not parts:
            return
        text, spans = "".join([*parts, text[at:]]), origins + spans[at:]
        yield text, spans


def _read(escape: re.Match[str]) -> str:
    match escape.lastgroup:
        case "hex":
            return chr(int(escape["hex"], 16))
        case "plain":
            return escape["plain"]
        case "nothing":
            return ""
        case _:
            return html.unescape(escape[0])


def _pieces(secrets: Iterable[str]) -> _Pieces:
    found: dict[int, set[str]] = {}
    for secret in secrets:
        for form in _forms(secret):
            width = min(_SHORTEST_PIECE, len(form))
            found.setdefault(width, set()).update(form[at : at + width] for at in range(len(form) - width + 1))
    found.pop(0, None)
    return found


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode(errors="replace")
    for read, _ in _layers(secret):  # it may hold what looks like an escape, and is taken for one
        yield read
    yield secret.replace(" ", "+")  # in a form
    yield raw.hex()
    yield raw.hex().upper()
    for shift in range(3):  # where the secret begins decides what its base64 looks like
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(b"\0" * shift + raw).decode().rstrip("=")
            yield encoded[shift and 4 : len(encoded) - len(encoded) % 4]
