"""Redact secrets in text that another party wrote, before it is logged or shown.

Escapes (of URLs, JSON, HTML) are decoded layer by layer, as a reader of the text could do; a secret that shows at any
layer is redacted. Known secrets, which are visible ASCII, are also searched for in hex and base64.
"""

import html
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

REDACTED = "[redacted]"

_MIN_PIECE = 6
"""Consecutive characters of a known secret that are redacted: a server may echo a part of it."""

_MIN_LEAK = 12
"""Consecutive characters of a secret that cannot be coincidence, so that a token with them is rejected."""

_MAX_LAYERS = 4
"""Deep enough for JSON in JSON in a URL."""

_LOOKS_SECRET = tuple(
    re.compile(pattern, re.VERBOSE)
    for pattern in (  # separate, with few possible first characters each: one combined pattern takes six times as long
        r"""eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,2}  # a JWT, or its head: {" in base64url""",
        r"""\b(?:hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}  # a token of Vault or OpenBao""",
        r"""[sStT](?i:ecret|ecret_id|oken)  # and any prefix of the name; @FILE is part of a remedy of --check
            (?: =(?P<plain>(?!@FILE$)[^\s&"',;]+) | "\s*:\s*"(?P<double>[^"]*) | '\s*:\s*'(?P<single>[^']*) )""",
        r"""-[vV](?i:ault-token)\s*:\s*(?P<header>[^\s"']+)""",
    )
)

_ESCAPE = re.compile(
    r"""
      (?: % | %u(?=[0-9a-f]{4}) | \\x | \\u(?=[0-9a-f]{4}) ) (?P<hex> (?<=u)[0-9a-f]{4} | (?<!u)[0-9a-f]{2} )
    | \\(?P<plain>["'\\/])
    | &(?: \#\d{1,7} | \#x[0-9a-f]{1,6} | [a-z][a-z0-9]{1,30} );
    # decodes to nothing: such as NULs, between ASCII letters in UTF-16
    | (?P<nothing>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff])
    """,
    re.VERBOSE | re.IGNORECASE,
)

_Pieces = Mapping[int, set[str]]
"""Substrings of secrets, by length."""


def redacted(text: str, *secrets: str) -> str:
    """Return the text on one line, without these secrets (whole, in part or encoded) and whatever looks like one."""
    return " ".join(redacted_lines(text, *secrets).split())


def redacted_lines(text: str, *secrets: str) -> str:
    """Redact without joining lines; characters that would control a terminal become spaces."""
    if secrets or _ESCAPE.search(text) or any(each.search(text) for each in _LOOKS_SECRET):  # most texts have none
        hidden = _mark_secrets(text, _pieces(secrets))
        runs = groupby(zip(hidden, text, strict=True), key=itemgetter(0))
        text = "".join(REDACTED if is_hidden else "".join(map(itemgetter(1), run)) for is_hidden, run in runs)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def leaks(text: str, secret: str, public_words: Sequence[str] = ()) -> bool:
    """Return True if the text contains more of the secret, in any encoding, than coincidence explains.

    :param public_words: public words that may be part of the secret.
    """
    if len(secret) < _MIN_LEAK:
        return False
    forms = list(_forms(secret))
    return any(_contains_piece(layer, form, public_words) for layer, _ in _layers(text) for form in forms)


def redact_value(value: Any) -> Any:
    """Redact a field of a log line or report at any depth; types unknown to JSON become text."""
    match value:
        case str():
            return redacted(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {redacted(str(key)): redact_value(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [redact_value(each) for each in value]
        case _:
            return redacted(repr(value))


def _contains_piece(text: str, form: str, public_words: Sequence[str]) -> bool:
    """Return True if the text has a substring of the form that is neither coincidence nor public."""
    width = min(_MIN_LEAK, len(form))
    half = width // 2
    # quick test: every piece contains an aligned block of half its width, so no such block means no piece
    if not any(form[at : at + half] in text for at in range(0, len(form) - half + 1, half or 1)):
        return False
    pieces = [form[at : at + width] for at in range(len(form) - width + 1)] if width else []
    return any(piece in text and not any(piece in each for each in public_words) for piece in pieces)


def _mark_secrets(text: str, pieces: _Pieces) -> bytearray:
    """Mark each character that must not be shown."""
    hidden = bytearray(len(text))
    for layer, spans in _layers(text):
        for begin, end in _find_spans(layer, pieces):
            if begin < end:
                first, last = spans[begin][0], spans[end - 1][1]
                hidden[first:last] = b"\1" * (last - first)
    return hidden


def _find_spans(text: str, pieces: _Pieces) -> Iterator[tuple[int, int]]:
    for size, known in pieces.items():
        yield from ((at, at + size) for at in range(len(text) - size + 1) if text[at : at + size] in known)
    for pattern in _LOOKS_SECRET:
        yield from (match.span(match.lastgroup or 0) for match in pattern.finditer(text))


def _layers(text: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield the text, then each layer of decoded escapes, with the origin of every character."""
    spans = [(at, at + 1) for at in range(len(text))]
    yield text, spans
    for _ in range(_MAX_LAYERS):
        parts: list[str] = []
        origins: list[tuple[int, int]] = []
        at = 0
        for match in _ESCAPE.finditer(text):
            begin, end = match.span()
            decoded = _decode_escape(match)
            parts += text[at:begin], decoded
            origins += spans[at:begin] + [(spans[begin][0], spans[end - 1][1])] * len(decoded)
            at = end
        if not parts:
            return
        text, spans = "".join([*parts, text[at:]]), origins + spans[at:]
        yield text, spans


def _decode_escape(escape: re.Match[str]) -> str:
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
            width = min(_MIN_PIECE, len(form))
            found.setdefault(width, set()).update(form[at : at + width] for at in range(len(form) - width + 1))
    found.pop(0, None)
    return found


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode(errors="replace")
    for decoded, _ in _layers(secret):  # a part of it may look like an escape, and is decoded as one
        yield decoded
    yield secret.replace(" ", "+")  # as an HTML form encodes it
    yield raw.hex()
    yield raw.hex().upper()
    for shift in range(3):  # its base64 depends on its offset
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(b"\0" * shift + raw).decode().rstrip("=")
            yield encoded[shift and 4 : len(encoded) - len(encoded) % 4]
