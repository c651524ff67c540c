"""The ways in which a server may tell a secret that it was sent, and the words around it."""

import base64
import html
import json
import random
import string
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus

from hypothesis import strategies as st


def each(form: str) -> Callable[[str], str]:
    """Return an encoder that writes every character in the same way."""
    return lambda text: "".join(form.format(ord(character)) for character in text)


FORMS: Final[Mapping[str, Callable[[str], str]]] = {
    "as it is": str,
    "URL-encoded": lambda text: quote(text, safe=""),
    "as a form has it": quote_plus,
    "URL-encoded throughout": each("%{:02X}"),
    "URL-encoded in small letters": each("%{:02x}"),
    "URL-encoded in either case": lambda text: each("%{:02X}")(text[:9]) + each("%{:02x}")(text[9:]),
    "URL-encoded twice": lambda text: quote(quote(text, safe=""), safe=""),
    "as JSON": lambda text: json.dumps(text)[1:-1],
    "as JSON throughout": each("\\u{:04x}"),
    "as JSON in JSON": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    "as JSON in a URL": lambda text: quote(json.dumps(text)[1:-1], safe=""),
    "as Python": each("\\x{:02x}"),
    "as HTML": html.escape,
    "as HTML in numbers": each("&#{};"),
    "as HTML in hex": each("&#x{:x};"),
    "as HTML in HEX": each("&#x{:X};"),
    "in hex": lambda text: text.encode().hex(),
    "in HEX": lambda text: text.encode().hex().upper(),
    "in base64": lambda text: base64.b64encode(text.encode()).decode(),
    "in base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "behind a name in base64": lambda text: base64.b64encode(b"c:" + text.encode()).decode(),
    "in UTF-16": lambda text: text.encode("utf-16-le").decode("latin-1"),
}

PLAIN: Final = string.ascii_letters + string.digits
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F)))


def texts(letters: str, least: int, most: int) -> st.SearchStrategy[str]:
    """Texts of one draw each: a draw per letter takes ten times as long, and what matters here is around them."""

    def made(number: int) -> str:
        chance = random.Random(f"{letters} {least} {most} {number}")  # drawn twice, a number is not the same text
        return "".join(chance.choices(letters, k=chance.randint(least, most)))

    return st.integers(0, 2**63).map(made)


words: Final = texts(PLAIN, 3, 16)
secrets: Final = texts(_VISIBLE, 16, 40)
simple_secrets: Final = texts(PLAIN, 26, 26)
# no letter of it can be mistaken for a secret's, nor for an escape
around: Final = texts("\u00e4\u00f6\u00fc\u00df ", 0, 20)
