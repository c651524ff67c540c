"""Every check of a token: what passes, what is refused and in which words, and that no text at all can crash it."""

import base64
import json
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.builders import (
    ABSENT,
    ACCOUNT,
    CLAIMS,
    CLIENT_ID,
    HEADER,
    HOUR,
    ISSUED,
    SAMPLE,
    app_jwt,
    compact_jws,
    make_account,
    make_token,
    token_of,
)
from worker.core.appjwt import AppJWT, Check, Expected, TokenRefusedError, utc, validate

EXPECTED = Expected(ACCOUNT, CLIENT_ID, "msg.consumer")
SECOND = timedelta(seconds=1)


def refusal(
    token: str, now: datetime | None = ISSUED, expected: Expected = EXPECTED, forbidden: Collection[SecretStr] = ()
) -> TokenRefusedError:
    with pytest.raises(TokenRefusedError) as caught:
        validate(token, expected, now, forbidden)
    return caught.value


def with_claims(text: str, *instead_of: str) -> str:
    """Return a token whose claims are the usual ones, without those named, and with this JSON text added at the end."""
    usual = {key: value for key, value in CLAIMS.items() if key not in instead_of}
    return compact_jws(json.dumps(HEADER), f"{json.dumps(usual)[:-1]}, {text}}}")


# What passes


def test_the_published_sample_is_accepted_at_a_moment_inside_its_life() -> None:
    token = validate(SAMPLE, EXPECTED, ISSUED + HOUR / 2)
    assert token.raw.get_secret_value() == SAMPLE
    assert token.claims() == {
        "kid": "appjwt-13-05-17",
        "alg": "RS256",
        "typ": "JWT",
        "aud": "le81823118",
        "azp": "75588e18-0213-4e33-8174-883acac7e3c4",
        "scope": "msg.consumer",
        "iss": "Sentinel",
        "iat": "1524642670",
        "exp": "1524646270",
    }
    assert token.iat == datetime(2018, 4, 25, 7, 51, 10, tzinfo=UTC)
    assert token.exp == datetime(2018, 4, 25, 8, 51, 10, tzinfo=UTC)
    assert token.lifetime == HOUR
    assert re.fullmatch(r"[0-9a-f]{16}", token.fingerprint)


def test_the_published_sample_is_refused_as_ended_today() -> None:
    error = refusal(SAMPLE, datetime(2026, 1, 1, 12, 30, tzinfo=UTC))
    assert error.check is Check.EXP
    assert str(error) == "exp: expired at 2018-04-25T08:51:10Z (now 2026-01-01T12:30:00Z)"


@pytest.mark.parametrize("year", [1970, 1999, 2018, 2400])
def test_only_the_moment_handed_in_counts_never_the_wall_clock(year: int) -> None:
    """PyJWT by itself refuses what ended, or was issued in the future, by the machine's clock."""
    issued = datetime(year, 6, 1, tzinfo=UTC)
    far = int(datetime(2900, 1, 1, tzinfo=UTC).timestamp())
    assert validate(token_of(issued, nbf=far), EXPECTED, issued + HOUR / 2).iat == issued


def test_without_a_servers_clock_the_token_is_taken_to_be_new() -> None:
    assert validate(SAMPLE, EXPECTED, None).iat == ISSUED


def test_an_end_is_never_made_up() -> None:
    """A token without `exp` was read as valid for ever."""
    assert str(refusal(make_token(exp=ABSENT))) == "format: expected a claim exp, got none"
    assert str(refusal(make_token(exp=None))) == "format: expected a claim exp, got none"


@pytest.mark.parametrize(
    "token",
    [
        make_token(aud=[ACCOUNT]),
        make_token(aud=["another", ACCOUNT]),
        make_token(iss="sentinel"),
        make_token(iss="SENTINEL"),
        make_token({"kid": ABSENT}),
        make_token({"typ": ABSENT}),
        make_token({"typ": "jwt"}),
        make_token({"x5t": "unknown header"}),
        make_token(sub=7, jti=["unknown"], nbf="claims"),
        make_token(scope="msg.other msg.consumer"),
        make_token(exp=CLAIMS["iat"] + 86_400),  # type: ignore[operator]
        make_token(iat=CLAIMS["iat"] + 60),  # type: ignore[operator]
        compact_jws(json.dumps(HEADER), json.dumps(CLAIMS), b""),
        compact_jws(json.dumps(HEADER, indent=4), json.dumps(CLAIMS, indent=4)),
    ],
)
def test_what_is_unusual_but_right_is_accepted(token: str) -> None:
    assert ACCOUNT in validate(token, EXPECTED, ISSUED).aud


def test_a_token_may_have_no_kid_and_no_typ() -> None:
    token = validate(make_token({"kid": ABSENT, "typ": ABSENT}), EXPECTED, ISSUED)
    assert (token.kid, token.typ) == ("", "")


def test_a_list_of_audiences_is_kept_whole_and_told_with_spaces_between() -> None:
    token = app_jwt(aud=["one", "two"])
    assert token.aud == ("one", "two")
    assert token.claims()["aud"] == "one two"


@pytest.mark.parametrize(
    "token",
    [
        with_claims(f'"azp": "{CLIENT_ID}"'),
        with_claims(f'"a\\u007ap": "{CLIENT_ID}"'),
        with_claims('"more": {"a": [{"b": 1, "b": 1}]}'),
        compact_jws(f'{json.dumps(HEADER)[:-1]}, "alg": "none"}}', json.dumps(CLAIMS)),
    ],
)
def test_a_name_that_comes_twice_is_refused_for_readers_may_take_either(token: str) -> None:
    assert str(refusal(token)) == "format: expected each name once in an object, got one twice"


@pytest.mark.parametrize("no_json", ["NaN", "Infinity", "-Infinity", "[NaN]"])
def test_what_only_python_takes_for_json_is_refused_wherever_it_stands(no_json: str) -> None:
    text = "format: expected a JSON header and JSON claims, got something else"
    assert str(refusal(with_claims(f'"more": {no_json}'))) == text
    assert str(refusal(compact_jws(f'{json.dumps(HEADER)[:-1]}, "x": {no_json}}}', json.dumps(CLAIMS)))) == text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "utf-8-sig"])
def test_json_is_utf_8_and_nothing_else(encoding: str) -> None:
    token = compact_jws(json.dumps(HEADER), json.dumps(CLAIMS).encode(encoding))
    assert str(refusal(token)) == "format: expected a JSON header and JSON claims, got something else"


def encodings(secret: str) -> list[str]:
    return [secret, secret[3:17], base64.b64encode(b"x" + secret.encode()).decode(), f"{secret}-more"]


@pytest.mark.parametrize("claim", ["aud", "scope"])
@pytest.mark.parametrize("form", range(4))
def test_a_token_that_tells_the_client_secret_is_refused_for_its_claims_are_logged(claim: str, form: int) -> None:
    account = make_account()
    encoded_secret = encodings(account.client_secret.get_secret_value())[form]
    value = [ACCOUNT, encoded_secret] if claim == "aud" else f"msg.consumer {encoded_secret}"
    for token in (make_token({}, **{claim: value}), make_token({"kid": encoded_secret})):
        error = refusal(token, expected=Expected.of(account), forbidden=[account.client_secret])
        assert str(error) == "format: token contains the client_secret"


@pytest.mark.parametrize(
    ("secret", "claims"),
    [
        ("brand-eu-105-secret", {"aud": "brand-eu-105"}),
        (f"key-of-{CLIENT_ID}", {}),
        ("msg.consumer-key", {}),
        ("a-name/of-its-own", {"scope": "msg.consumer a-name/of-its-own"}),
        ("va.sentinel.example:1", {"scope": "msg.consumer va.sentinel.example"}),
    ],
)
def test_what_is_known_anyway_is_not_the_secret_though_that_holds_it(secret: str, claims: dict[str, str]) -> None:
    expected = Expected(claims.get("aud", ACCOUNT), CLIENT_ID, "msg.consumer")
    public_words = ["a-name/of-its-own", "va.sentinel.example"]
    assert validate(make_token({}, **claims), expected, ISSUED, [SecretStr(secret)], public_words).azp == CLIENT_ID


@pytest.mark.parametrize("scope", ["brand-eu-105-secret", "brand-eu-105-s", "105-secret-of-it"])
def test_more_of_the_secret_than_is_known_anyway_is_refused(scope: str) -> None:
    token, expected = make_token(aud="brand-eu-105", scope=scope), Expected("brand-eu-105", CLIENT_ID)
    error = refusal(token, expected=expected, forbidden=[SecretStr("brand-eu-105-secret-of-it")])
    assert str(error) == "format: token contains the client_secret"


def test_a_short_secret_may_be_in_a_claim_by_chance() -> None:
    account = make_account(client_secret=SecretStr("msg.consume"))
    assert validate(make_token(), Expected.of(account), ISSUED, [account.client_secret]).scope == "msg.consumer"


def test_what_is_not_known_is_not_compared() -> None:
    token = make_token(aud="anybody", azp="anything", scope=ABSENT)
    assert validate(token, Expected(), ISSUED).scope == ""


def test_a_time_is_told_with_a_year_of_four_digits() -> None:
    """RFC 3339; without a Date from Sentinel any year may come."""
    long_ago = datetime(33, 4, 3, 15, 0, 0, 999_999, tzinfo=UTC)
    assert utc(long_ago) == "0033-04-03T15:00:00Z"
    assert utc(long_ago.astimezone(timezone(5 * HOUR))) == "0033-04-03T15:00:00Z"


def test_a_time_is_told_in_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "IST-5:30")
        time.tzset()
        text = utc(ISSUED)
    time.tzset()
    assert text == "2018-04-25T07:51:10Z"


def test_an_account_says_what_its_token_must_hold() -> None:
    account = make_account("le81823118/connector-a", scope="msg.consumer")
    assert Expected.of(account) == Expected(ACCOUNT, CLIENT_ID, "msg.consumer")


# What is refused, and in which words


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (make_token({"alg": "none"}), "alg: expected RS256, got none"),
        (make_token({"alg": "HS256"}), "alg: expected RS256, got HS256"),
        (make_token({"alg": "rs256"}), "alg: expected RS256, got rs256"),
        (make_token({"alg": ""}), "alg: expected RS256, got nothing"),
        (make_token({"typ": "at+jwt"}), "typ: expected JWT, got at+jwt"),
        (make_token(aud="le00000000"), f"aud: expected {ACCOUNT}, got le00000000"),
        (make_token(aud=["a", "b"]), f"aud: expected {ACCOUNT}, got a b"),
        (make_token(aud=[]), f"aud: expected {ACCOUNT}, got nothing"),
        (make_token(aud=ACCOUNT.upper()), f"aud: expected {ACCOUNT}, got {ACCOUNT.upper()}"),
        (make_token(azp="another-app"), f"azp: expected {CLIENT_ID}, got another-app"),
        (make_token(azp="x" * 80), f"azp: expected {CLIENT_ID}, got {'x' * 80}"),
        (make_token(azp="x" * 500), f"azp: expected {CLIENT_ID}, got {'x' * 80}…"),
        (make_token(iss="Sentry"), "iss: expected Sentinel, got Sentry"),
        (make_token(iss="\u017fentinel"), "iss: expected Sentinel, got \u017fentinel"),
        (make_token(iss=""), "iss: expected Sentinel, got nothing"),
        (token_of(ISSUED - HOUR), "exp: expired at 2018-04-25T07:51:10Z (now 2018-04-25T07:51:10Z)"),
        (
            token_of(ISSUED + 61 * SECOND),
            "iat: issued in the future (2018-04-25T07:52:11Z, now 2018-04-25T07:51:10Z)",
        ),
        (token_of(ISSUED + 30 * SECOND, 0 * SECOND), "lifetime: expected more than 0, at most 24 h, got 0:00:00"),
        (
            token_of(ISSUED + 30 * SECOND, -1 * SECOND),
            "lifetime: expected more than 0, at most 24 h, got -1 day, 23:59:59",
        ),
        (token_of(ISSUED, 24 * HOUR + SECOND), "lifetime: expected more than 0, at most 24 h, got 1 day, 0:00:01"),
        (make_token(scope="msg.consumer.more"), "scope: expected msg.consumer, got msg.consumer.more"),
        (make_token(scope=ABSENT), "scope: expected msg.consumer, got nothing"),
    ],
)
def test_each_check_refuses_with_what_it_expected_and_what_came(token: str, text: str) -> None:
    error = refusal(token)
    assert str(error) == text
    assert error.check == text.partition(":")[0]


def test_the_first_check_that_fails_is_the_one_reported() -> None:
    wrong: dict[str, object] = {"aud": "x", "azp": "x", "iss": "x", "exp": 1, "iat": 2**31, "scope": "x"}
    right = {key: CLAIMS[key] for key in wrong}
    reported = []
    for key in wrong:
        reported.append(refusal(make_token({}, **wrong)).check)
        wrong[key] = right[key]
    assert reported == ["aud", "azp", "iss", "exp", "iat", "scope"]


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("aud", "aud as printable text"),
        ("azp", "azp as printable text"),
        ("iss", "iss as printable text"),
        ("scope", "scope as printable text"),
        ("iat", "iat as a whole number"),
        ("exp", "exp as a whole number"),
    ],
)
@pytest.mark.parametrize(
    ("value", "got"), [({}, "dict"), (True, "bool"), (1.5, "float"), ([[]], "list"), ([7], "list"), (["a\nb"], "list")]
)
def test_a_claim_of_the_wrong_type_is_a_matter_of_format(claim: str, expected: str, value: Any, got: str) -> None:
    if claim == "aud" and isinstance(value, list):
        got = type(value[0]).__name__  # an audience may be a list, so it is what is in it that is wrong
    assert str(refusal(make_token({}, **{claim: value}))) == f"format: expected {expected}, got {got}"


@pytest.mark.parametrize("claim", ["iat", "exp"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("true", "as a whole number, got bool"),
        ("1524646270.0", "as a whole number, got float"),
        ("1524646270e0", "as a whole number, got float"),
        ("1e400", "as a whole number, got float"),
        ('"1524646270"', "as a whole number, got str"),
        ("9" * 20, "as a time, got a number out of range"),
        ("-" + "9" * 20, "as a time, got a number out of range"),
        ("253402300800", "as a time, got a number out of range"),
    ],
)
def test_times_are_whole_numbers_of_seconds_and_nothing_else(claim: str, value: str, text: str) -> None:
    assert str(refusal(with_claims(f'"{claim}": {value}', claim))) == f"format: expected {claim} {text}"


@pytest.mark.parametrize("claim", ["aud", "azp", "iss", "iat", "exp"])
def test_a_claim_that_is_missing_is_named(claim: str) -> None:
    assert str(refusal(make_token({}, **{claim: ABSENT}))) == f"format: expected a claim {claim}, got none"


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c.d", f" {SAMPLE}", f"{SAMPLE}\n", "Bearer " + SAMPLE, "ä.ö.ü"])
def test_what_is_no_compact_token_is_refused_by_its_form(text: str) -> None:
    assert str(refusal(text)) == "format: not a compact JWS"


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    "token",
    [
        compact_jws("", "{}"),
        compact_jws("{}", "\xff"),
        compact_jws("[]", json.dumps(CLAIMS)),
        compact_jws("7", json.dumps(CLAIMS)),
        compact_jws(json.dumps(HEADER), "[]"),
        compact_jws(json.dumps(HEADER), "null"),
        compact_jws(json.dumps(HEADER), b"\xff\xfe\xfd"),
        compact_jws(DEEP, "{}"),
        compact_jws(json.dumps(HEADER), DEEP),
        compact_jws(json.dumps(HEADER), '{"exp": ' + "9" * 5000 + "}"),
    ],
)
def test_a_crafted_header_or_payload_is_refused_as_no_json_of_the_right_kind(token: str) -> None:
    assert str(refusal(token)) in (
        "format: expected a JSON header and JSON claims, got something else",
        "format: not a compact JWS",
    )


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": 7}, {"b64": False}, {"b64": False, "crit": ["b64"]}])
def test_a_header_that_changes_what_the_others_mean_is_refused(header: dict[str, object]) -> None:
    assert str(refusal(make_token(header))) == "format: expected no header crit or b64, got one"


def test_a_kid_that_is_no_text_is_refused() -> None:
    assert str(refusal(make_token({"kid": 7}))) == "format: expected kid as printable text, got int"


@pytest.mark.parametrize("alg", [ABSENT, None, 7, ["RS256"]])
def test_a_header_without_a_usable_alg_is_refused(alg: Any) -> None:
    error = refusal(make_token({"alg": alg}))
    assert error.check is Check.FORMAT
    assert str(error).startswith("format: expected alg as printable text, got ")


def test_a_text_of_8192_characters_is_looked_at_and_a_longer_one_is_not() -> None:
    room = 8192 - len(with_claims('"x": ""'))
    longest = with_claims(f'"x": "{"x" * (room * 3 // 4)}"')
    longest += "A" * (8192 - len(longest)) if (8192 - len(longest)) % 4 == 0 else ""
    assert 8180 < len(longest) <= 8192
    assert validate(longest, EXPECTED, ISSUED).azp == CLIENT_ID
    assert str(refusal("A" * 8193)) == "format: expected at most 8192 characters, got 8193"


def test_neither_repr_nor_str_of_a_token_shows_it() -> None:
    token = app_jwt()
    raw = token.raw.get_secret_value()
    for part in (raw, raw.rpartition(".")[2]):
        assert part not in repr(token) + str(token)


# Properties

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
times = st.integers(-(10**12), 10**12) | st.integers(-90_000, 90_000).map(lambda off: int(ISSUED.timestamp()) + off)
texts = st.sampled_from(["", "RS256", "none", "JWT", "Sentinel", "SENTINEL", ACCOUNT, CLIENT_ID, "msg.consumer", "a b"])
anything = texts | times | st.lists(texts, max_size=3) | json_values
headers: st.SearchStrategy[Mapping[str, object]] = (
    st.just({})
    | st.dictionaries(st.sampled_from([*HEADER]), texts, max_size=1)
    | st.dictionaries(st.sampled_from([*HEADER, "crit", "b64"]), anything, max_size=1)
)
claims = (
    st.dictionaries(st.sampled_from(["aud", "azp", "scope", "iss"]), texts, max_size=1)
    | st.dictionaries(st.sampled_from(["iat", "exp"]), times)
    | st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "sub"]), anything, max_size=2)
)
crafted = st.builds(
    lambda header, claims, signature: compact_jws(
        json.dumps({**HEADER, **header}), json.dumps({**CLAIMS, **claims}), signature
    ),
    headers,
    claims,
    st.binary(min_size=32, max_size=64),
)
moments = st.sampled_from([None, ISSUED, ISSUED + HOUR / 2]) | st.datetimes(timezones=st.just(UTC))
expectations = st.sampled_from([EXPECTED, Expected(), Expected(ACCOUNT, CLIENT_ID)])


def assert_it_holds_what_was_promised(token: AppJWT, raw: str, expected: Expected, now: datetime | None) -> None:
    assert token.raw.get_secret_value() == raw
    assert token.alg == "RS256"
    assert token.iss.lower() == "sentinel"
    assert expected.account_id in (None, *token.aud)
    assert expected.client_id in (None, token.azp)
    assert expected.scope in (None, *token.scope.split())
    assert timedelta(0) < token.lifetime <= 24 * HOUR
    assert token.exp > (now or token.iat)
    assert token.iat <= (now or token.iat) + timedelta(minutes=1)
    claims = token.claims()
    assert all(isinstance(value, str) and value.isprintable() for value in claims.values())
    assert (int(claims["iat"]), int(claims["exp"])) == (token.iat.timestamp(), token.exp.timestamp())
    assert validate(raw, expected, now) == token


def assert_it_says_no_more_than_it_should(error: TokenRefusedError, raw: str) -> None:
    text, signature = str(error), raw.rpartition(".")[2]
    assert text.isprintable()
    assert len(text) < 300
    assert error.__cause__ is None
    assert error.__suppress_context__ or not error.__context__  # the library's text may hold parts of the token
    if len(signature) >= 20:  # a few letters may well be in the sentence
        assert signature not in text


def checked(raw: str, expected: Expected, now: datetime | None) -> Check | None:
    """Return the check that refused it, None = none did; either way its promises are checked."""
    refused_by: Check | None = None
    try:
        token = validate(raw, expected, now)
    except TokenRefusedError as error:
        assert_it_says_no_more_than_it_should(error, raw)
        refused_by = Check(str(error.check))
    else:
        assert_it_holds_what_was_promised(token, raw, expected, now)
    return refused_by


@given(st.text() | st.text("abcXYZ019-_.=", max_size=200), moments)
@example("..", None)
@example("\ud800", None)
@example("e30.e30.", None)
def test_no_text_whatsoever_gets_more_out_of_it_than_a_refusal(raw: str, now: datetime | None) -> None:
    assert checked(raw, EXPECTED, now) is Check.FORMAT


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=20))
def test_no_bytes_in_the_parts_get_more_out_of_it_than_a_refusal(
    header: bytes, claims: bytes, signature: bytes
) -> None:
    assert checked(compact_jws(header, claims, signature), EXPECTED, None) is Check.FORMAT


def test_whatever_a_token_says_it_is_refused_or_all_that_was_promised_holds_of_it() -> None:
    """The examples are near misses, so that they get past the first checks: they must reach every one."""
    ends: set[Check | None] = set()

    @settings(max_examples=600)
    @given(crafted, expectations, moments)
    def look(raw: str, expected: Expected, now: datetime | None) -> None:
        ends.add(checked(raw, expected, now))

    look()
    assert ends == {None, *Check} - {Check.SIGNATURE, Check.TOKEN_TYPE}  # which other modules make


@given(st.integers(0, len(SAMPLE) - 1), st.sampled_from("AZaz09-_.="))
def test_a_changed_character_never_gets_another_life_or_owner_through(at: int, character: str) -> None:
    """It may pass where the signature is not verified, but then it is still this account's, and within the limits."""
    checked(SAMPLE[:at] + character + SAMPLE[at + 1 :], EXPECTED, ISSUED)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_no_base64_is_refused_without_its_words(part: int) -> None:
    parts: list[str] = SAMPLE.split(".")
    parts[part] = parts[part][: len(parts[part]) // 4 * 4] + "A"  # base64 never has such a length
    error = refusal(".".join(parts))
    assert str(error) == "format: not a compact JWS"
    assert_it_says_no_more_than_it_should(error, ".".join(parts))
