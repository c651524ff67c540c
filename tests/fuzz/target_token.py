"""The checks of a token, each by a token that is right but for one thing."""

import base64
import hashlib
import hmac
import json
import random
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import FORMS, PLAIN, words
from worker.core.appjwt import Check, Expected, TokenRefusedError, validate
from worker.liveperson.keys import PinnedKeys

NOW = 1_700_000_000
ACCEPTED = "accepted"
_TIMES = ("iat", "exp")
_TEXTS = ("aud", "azp", "iss", "scope")

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def _pem() -> bytes:
    return _key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@cache
def _keys() -> PinnedKeys:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key.pem"
        file.write_bytes(_pem())
        return PinnedKeys(file)


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _signature(text: str, how: str) -> bytes:
    match how:
        case "right":
            return _key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        case "hmac":  # the known attack: the public key taken for a shared secret
            return hmac.digest(_pem(), text.encode(), hashlib.sha256)
        case "none":
            return b""
        case _:
            return hashlib.shake_256(text.encode()).digest(256)


def _right(number: int) -> Input:
    """Return a valid token's content, and the expected values. Of one draw: see forms.texts."""
    chance = random.Random(number)
    account, client, secret = ("".join(chance.choices(PLAIN, k=size)) for size in (chance.randint(1, 20), 20, 26))
    life = chance.randint(1, 86_400)
    iat = NOW + chance.randint(1 - life, 0)
    claims: dict[str, Any] = {
        "aud": chance.choice([account, [account], ["other", account]]),
        "azp": client,
        "scope": "msg.consumer",
        "iss": chance.choice(["Sentinel", "sentinel", "SENTINEL"]),
        "iat": iat,
        "exp": iat + life,
        **chance.choice([{}, {"sub": None}, {"nbf": 1.5}, {"jti": [{"x": True}]}]),
    }
    header = {"alg": "RS256", **chance.choice([{}, {"kid": "k"}, {"kid": "k", "typ": "JWT"}, {"typ": "jwt"}])}
    return {"header": header, "claims": claims, "account": account, "client": client, "secret": secret}


def _made(
    right: Input, case: str, *, header: str = "", claims: str = "", raw: str | None = None, sign: str = "cheap"
) -> Input:
    """Return the input; header, claims and raw are texts that replace the right ones."""
    head = header or json.dumps(right["header"])
    body = claims or json.dumps(right["claims"])
    signed = f"{_encoded(head.encode('latin-1', 'replace'))}.{_encoded(body.encode('latin-1', 'replace'))}"
    return {
        "case": case,
        "raw": raw if raw is not None else f"{signed}.{_encoded(_signature(signed, sign))}",
        **{key: right[key] for key in ("account", "client", "secret")},
        "verify": case == Check.SIGNATURE or sign == "right",
    }


def _case(name: str, *drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., Input]], Callable[..., Input]]:
    """Decorator: the function breaks one thing of a right token."""

    def register(build: Callable[..., Input]) -> Callable[..., Input]:
        _CASES[name] = st.builds(
            lambda number, *values: build(_right(number), name, *values), st.integers(0, 2**63), *drawn
        )
        return build

    return register


_CASES: dict[str, st.SearchStrategy[Input]] = {}


def _with(right: Input, part: str, changes: Mapping[str, Any]) -> Input:
    return {**right, part: {**right[part], **changes}}


@_case(ACCEPTED, st.sampled_from(["cheap", "cheap", "cheap", "right"]))
def _accepted(right: Input, name: str, sign: str) -> Input:
    return _made(right, name, sign=sign)


@_case("format: too long", st.integers(0, 5000))
def _long(right: Input, name: str, more: int) -> Input:
    return _made(right, name, raw="e" * (8193 + more))


@_case("format: no three parts", st.text("abcXYZ09-_.= \n\u00e4", max_size=60))
def _parts(right: Input, name: str, text: str) -> Input:
    return _made(right, name, raw=text if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", text, re.ASCII) else f"{text}.")


@_case("format: no base64", st.integers(0, 2), st.sampled_from("AQgw"))
def _base64(right: Input, name: str, at: int, character: str) -> Input:
    parts = _made(right, name)["raw"].split(".")
    parts[at] = parts[at][: len(parts[at]) // 4 * 4] + character
    return _made(right, name, raw=".".join(parts))


_PART = st.sampled_from(["header", "claims"])


@_case("format: no UTF-8", _PART, st.sampled_from(["\xff", "\xc0\x80", "\xed\xa0\x80", "\x80"]))
def _utf8(right: Input, name: str, part: str, bad: str) -> Input:
    return _made(right, name, **{part: f'{json.dumps(right[part])[:-1]}, "x": "{bad}"}}'})


@_case("format: no JSON", _PART, st.sampled_from(["NaN", "-Infinity", "Infinity", "9" * 5000, "", "'x'", '"\n"', "{]"]))
def _no_json(right: Input, name: str, part: str, bad: str) -> Input:
    return _made(right, name, **{part: f'{json.dumps(right[part])[:-1]}, "x": {bad}}}'})


@_case("format: no object", _PART, st.sampled_from(["[]", "null", "7", '"x"', "[{}]", "true"]))
def _no_object(right: Input, name: str, part: str, other: str) -> Input:
    return _made(right, name, **{part: other})


@_case("format: a name twice", _PART, st.data())
def _twice(right: Input, name: str, part: str, data: st.DataObject) -> Input:
    key = data.draw(st.sampled_from(sorted(right[part])))
    value = data.draw(st.sampled_from([right[part][key], "none", 0]))
    spelt = data.draw(st.sampled_from([key, f"\\u{ord(key[0]):04x}{key[1:]}"]))
    inside = f'"x9": {{"a": 1, "a": {json.dumps(value)}}}'
    more = data.draw(st.sampled_from([f'"{spelt}": {json.dumps(value)}', inside]))
    return _made(right, name, **{part: f"{json.dumps(right[part])[:-1]}, {more}}}"})


@_case("format: crit or b64", st.sampled_from(["crit", "b64"]), _json)
def _crit(right: Input, name: str, key: str, value: Any) -> Input:
    return _made(_with(right, "header", {key: value}), name)


@_case("format: a claim missing", st.sampled_from(["aud", "azp", "iss", "iat", "exp"]), st.booleans())
def _missing(right: Input, name: str, key: str, null: bool) -> Input:  # noqa: FBT001 - drawn
    changed = _with(right, "claims", {key: None})
    if not null:
        del changed["claims"][key]
    return _made(changed, name)


_no_text = _json.filter(lambda value: value is not None and not isinstance(value, str | list))
_unprintable = st.sampled_from("\x00\x1b\x7f\n\u202e\u200b\ud800").map(lambda character: f"x{character}")


@_case("format: no text", st.sampled_from([*_TEXTS, "alg", "typ", "kid"]), _no_text | _unprintable | st.just([[]]))
def _other_type(right: Input, name: str, key: str, value: Any) -> Input:
    return _made(_with(right, "claims" if key in _TEXTS else "header", {key: value}), name)


@_case(
    "format: no whole number",
    st.sampled_from(_TIMES),
    st.sampled_from(["true", "false", '"{}"', "{}.0", "{}e0", "1e400", "-1e400", "[]", "[{}]"]),
)
def _no_number(right: Input, name: str, key: str, form: str) -> Input:
    claims = {**right["claims"], key: "HERE"}
    return _made(right, name, claims=json.dumps(claims).replace('"HERE"', form.format(NOW)))


@_case("format: a time out of range", st.sampled_from(_TIMES), st.integers(253_402_300_800), st.booleans())
def _no_time(right: Input, name: str, key: str, value: int, negative: bool) -> Input:  # noqa: FBT001 - drawn
    return _made(_with(right, "claims", {key: -value if negative else value}), name)


_TELLING = ("as it is", "URL-encoded throughout", "as HTML in numbers", "in hex", "in HEX", "in base64", "as Python")


@_case("format: tells the client_secret", st.sampled_from(["kid", "scope", "aud"]), st.sampled_from(_TELLING), words)
def _telling(right: Input, name: str, key: str, form: str, before: str) -> Input:
    told = f"{before} {FORMS[form](right['secret'])}"
    if key == "kid":
        return _made(_with(right, "header", {key: told}), name)
    return _made(
        _with(right, "claims", {key: [right["account"], told] if key == "aud" else f"msg.consumer {told}"}), name
    )


@_case(Check.ALG, st.sampled_from(["none", "None", "NONE", "HS256", "HS512", "RS512", "ES256", "PS256", "rs256", ""]))
def _alg(right: Input, name: str, alg: str) -> Input:
    return _made(_with(right, "header", {"alg": alg}), name, sign="hmac" if alg == "HS256" else "none")


@_case(Check.TYP, st.sampled_from(["at+jwt", "JWE", "JWT ", "JWS", "application/jwt"]))
def _typ(right: Input, name: str, typ: str) -> Input:
    return _made(_with(right, "header", {"typ": typ}), name)


@_case(Check.AUD, words, st.booleans())
def _aud(right: Input, name: str, other: str, listed: bool) -> Input:  # noqa: FBT001 - drawn
    other = f"{other}{right['account']}"
    return _made(_with(right, "claims", {"aud": [other] if listed else other}), name)


@_case(Check.AZP, words)
def _azp(right: Input, name: str, other: str) -> Input:
    return _made(_with(right, "claims", {"azp": right["client"] + other}), name)


@_case(Check.ISS, st.sampled_from(["", "Sentry", "\u017fentinel", "sentinel ", "https://sentinel"]) | words)
def _iss(right: Input, name: str, other: str) -> Input:
    return _made(_with(right, "claims", {"iss": f"{other}."}), name)


@_case(Check.EXP, st.integers(0, 10**9))
def _exp(right: Input, name: str, ago: int) -> Input:
    return _made(_with(right, "claims", {"exp": NOW - ago}), name)


@_case(Check.IAT, st.integers(61, 10**9))
def _iat(right: Input, name: str, ahead: int) -> Input:
    return _made(_with(right, "claims", {"iat": NOW + ahead, "exp": NOW + ahead + 60}), name)


@_case(Check.LIFETIME, st.integers(86_401, 10**9), st.integers(1, 60), st.booleans())
def _lifetime(right: Input, name: str, life: int, ahead: int, negative: bool) -> Input:  # noqa: FBT001 - drawn
    times = {"iat": NOW + 60, "exp": NOW + ahead} if negative else {"iat": NOW, "exp": NOW + life}
    return _made(_with(right, "claims", times), name)


@_case(Check.SCOPE, st.sampled_from(["", "msg.consumers", "MSG.CONSUMER", "amsg.consumer", "msg consumer"]))
def _scope(right: Input, name: str, other: str) -> Input:
    return _made(_with(right, "claims", {"scope": other}), name)


@_case(Check.SIGNATURE, st.sampled_from(["hmac", "none", "cheap"]))
def _signed_otherwise(right: Input, name: str, sign: str) -> Input:
    return _made(right, name, sign=sign)


_WORDS = {
    "at most 8192 characters": "too long",
    "a claim ": "a claim missing",
    "each name once": "a name twice",
    "no header crit": "crit or b64",
    "printable text": "no text",
    "as a whole number": "no whole number",
    "as a time": "a time out of range",
    "token contains the client_secret": "tells the client_secret",
}
_SAME_WORDS = {
    "not a compact JWS": ("no three parts", "no base64"),
    "a JSON header and JSON claims": ("no UTF-8", "no JSON", "no object"),
}


def run(value: Input) -> str:
    expected = Expected(value["account"], value["client"], "msg.consumer")
    now = datetime.fromtimestamp(NOW, UTC)
    try:
        token = validate(value["raw"], expected, now, [SecretStr(value["secret"])])
        if value["verify"]:
            _keys().verify(token, "host", timedelta(seconds=1))
    except TokenRefusedError as error:
        return _refused(error, value)
    assert token.raw.get_secret_value() == value["raw"]
    assert value["raw"] not in repr(token)
    assert token.alg == "RS256"
    assert value["account"] in token.aud
    assert (token.azp, token.iss.lower()) == (value["client"], "sentinel")
    assert timedelta(0) < token.lifetime <= timedelta(days=1)
    assert token.exp > now >= token.iat - timedelta(minutes=1)
    assert all(told.isprintable() and value["secret"] not in told for told in token.claims().values())
    return ACCEPTED


def _refused(error: TokenRefusedError, value: Input) -> str:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 300
    assert error.__cause__ is None
    assert error.__suppress_context__ or not error.__context__, "a library's text may hold the token"
    assert value["secret"] not in text
    if error.check != Check.FORMAT:
        return str(error.check)
    for said, reached in _WORDS.items():
        if said in text:
            return f"format: {reached}"
    for said, several in _SAME_WORDS.items():
        if said in text:
            case = value["case"].removeprefix("format: ")
            return f"format: {case if case in several else several[0]}"
    return text


TARGET = Target("token", _CASES, run)
