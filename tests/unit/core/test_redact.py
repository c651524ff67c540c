"""A secret does not get through: whole, in part, encoded, or only looking like one."""

import base64
import json
import secrets
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.builders import SAMPLE, make_token
from tests.fuzz import forms
from tests.fuzz.forms import each
from worker.core.outcome import State
from worker.core.redact import _MIN_PIECE, REDACTED, leaks, redact_value, redacted, redacted_lines

LONGEST_PIECE = 7
"""Characters of a secret in a row that may be seen; what is shorter than that may well be a word."""

visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
known_secrets = st.text(visible, min_size=8, max_size=60)
words = st.text(st.characters(codec="utf-8"), max_size=40)


def pieces(secret: str) -> set[str]:
    size = LONGEST_PIECE + 1
    return {secret[i : i + size] for i in range(len(secret) - size + 1)}


def assert_gone(secret: str, text: str) -> None:
    assert not [piece for piece in pieces(secret) if piece in text]


@given(known_secrets, words, words)
def test_no_piece_of_a_secret_in_a_text_is_left(secret: str, before: str, after: str) -> None:
    assume(not pieces(secret) & pieces(REDACTED + REDACTED))
    assume(not any(piece in before + after for piece in pieces(secret)))
    assert_gone(secret, redacted(before + secret + after, secret))


@given(known_secrets, st.data())
def test_nor_of_a_secret_that_was_cut_or_repeated(secret: str, data: st.DataObject) -> None:
    assume(not pieces(secret) & pieces(REDACTED + REDACTED))
    start = data.draw(st.integers(0, len(secret)))
    end = data.draw(st.integers(start, len(secret)))
    text = f"{secret[start:end]} {secret[end:]}{secret[:end]}{secret}"
    assert_gone(secret, redacted(text, secret))


@pytest.mark.parametrize(
    ("special", "encoded"),
    [
        pytest.param(" & & & ", lambda secret: quote(secret, safe=""), id="URL"),
        pytest.param("/+&?/+&?", quote_plus, id="form"),
        pytest.param(" a b c d ", quote_plus, id="spaces in a form"),
        pytest.param('"\\' * 4, lambda secret: json.dumps(secret)[1:-1], id="JSON"),
    ],
)
def test_an_escaped_secret_goes_like_a_plain_one(special: str, encoded: Callable[[str], str]) -> None:
    secret = secrets.token_hex(6) + special + secrets.token_hex(7)
    left = redacted(f"said {encoded(secret)} to us", secret)
    assert left.replace(REDACTED, "") == "said  to us"


@given(
    st.text("0123456789abcdefghijklmnopqrstuvwxyz?>~", min_size=26, max_size=26),  # the last three become + and /
    st.binary(max_size=7),
    st.binary(max_size=7),
    st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]),
)
def test_of_a_secret_in_base64_at_most_five_bytes_are_left_at_either_end(
    secret: str, before: bytes, after: bytes, encode: Callable[[bytes], bytes]
) -> None:
    left = redacted(encode(before + secret.encode() + after).decode().rstrip("="), secret)
    assert REDACTED in left
    for part in left.translate(str.maketrans("-_", "+/")).split(REDACTED):
        for shift in range(4):  # behind a gap it is unknown where a group of four begins
            groups = part[shift : shift + (len(part) - shift) // 4 * 4]
            assert not any(secret.encode()[i : i + 6] in base64.b64decode(groups) for i in range(21))


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", ["", "?", "??"])
@pytest.mark.parametrize("length", [6, 27, 28, 29])
def test_of_a_secret_in_base64_nothing_is_left_but_the_groups_of_four_that_it_shares(
    encode: Callable[[bytes], bytes], before: str, length: int
) -> None:
    # always the same, for by chance its groups could be those of what is around it; W at the end of a group is an X
    secret = "abcdefghijklmnopqrstuvwxyz0123456789"[: length - 1] + "W"
    encoded_text = encode(f"{before}{secret} is what you sent".encode()).decode()
    begin, end = -(-len(before) // 3) * 4, len(before + secret) // 3 * 4
    assert redacted(encoded_text, secret) == encoded_text[:begin] + REDACTED + encoded_text[end:]


ODD = "/+&<\"'\\%"
FORMS: dict[str, Callable[[str], str]] = {
    **{name: form for name, form in forms.FORMS.items() if "base64" not in name},  # which has its own tests above
    "percent as old scripts have it": each("%u{:04X}"),
    "base64 in a URL": lambda secret: quote(base64.b64encode(secret.encode() + b"??").decode()[:-4], safe=""),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_goes_whole_and_cut_in_whatever_form_it_is_told(form: str) -> None:
    for _ in range(20):
        secret = secrets.token_hex(7) + ODD + secrets.token_hex(8)
        encoded_secret = FORMS[form](secret)
        left = redacted(f"you sent {encoded_secret}, they say", secret)
        assert left.startswith(f"you sent {REDACTED}")
        assert left.endswith(", they say")
        assert len(left) < len(f"you sent {REDACTED}, they say") + 8, left  # the last bytes in base64
        part = redacted(f"you sent {encoded_secret[: len(encoded_secret) * 2 // 3]}", secret)
        assert part.startswith(f"you sent {REDACTED}")
        # the remainder at the end is less than a piece: not half an escape more
        assert len(part) < len(f"you sent {REDACTED}") + _MIN_PIECE * len(each("\\u{:04x}")("x")), part


def test_several_secrets_go_at_once_and_the_rest_stays() -> None:
    one, other = secrets.token_hex(13), secrets.token_hex(13)
    assert redacted(f"a {one} b {other} c", one, other) == f"a {REDACTED} b {REDACTED} c"


def test_a_short_secret_goes_too_and_an_empty_one_is_none() -> None:
    assert redacted("the pin is 4711 here", "4711", "") == f"the pin is {REDACTED} here"
    assert redacted("a-b", "-") == f"a{REDACTED}b"


def test_a_secret_goes_from_its_first_character_on_where_the_text_begins_with_it() -> None:
    secret = secrets.token_hex(13)
    assert redacted(secret[0] + each("%{:02x}")(secret[1:]), secret) == REDACTED


def test_a_secret_that_is_no_unicode_goes_too() -> None:
    assert redacted("the word \ud800passed\ud801 here", "\ud800passed\ud801") == f"the word {REDACTED} here"


@pytest.mark.parametrize("text", ['{"client_secret":"', '{"client_secret":""}', "{'secret_id':'"])
def test_where_a_text_is_cut_just_before_the_secret_nothing_is_hidden(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(SAMPLE, id="an AppJWT"),
        pytest.param(SAMPLE[:40], id="the beginning of one"),
        pytest.param(SAMPLE.rpartition(".")[0], id="one without signature"),
        pytest.param(make_token(), id="another AppJWT"),
        pytest.param("hvs." + secrets.token_urlsafe(72), id="a service token of Vault"),
        pytest.param("hvb." + secrets.token_urlsafe(72), id="a batch token"),
        pytest.param("hvr." + secrets.token_urlsafe(72), id="a recovery token"),
        pytest.param("s." + secrets.token_hex(12), id="a service token of OpenBao"),
        pytest.param("b." + secrets.token_urlsafe(24), id="a batch token of OpenBao"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "Bearer {}", 'token="{}"', "({})", "a={}&b=c", "['{}']", "X-Vault-Token: {}"])
def test_what_looks_like_a_token_goes_although_nobody_named_it(secret: str, around: str) -> None:
    left = redacted(around.format(secret))
    assert left == around.format(REDACTED)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("client_id=a&client_secret=abc%20d&x=1", f"client_id=a&client_secret={REDACTED}&x=1"),
        ('{"client_secret":"a b","x":1}', f'{{"client_secret":"{REDACTED}","x":1}}'),
        ('{"client_secret": "a b"}', f'{{"client_secret": "{REDACTED}"}}'),
        ('{"role_id": "r", "secret_id": "s"}', f'{{"role_id": "r", "secret_id": "{REDACTED}"}}'),
        ("secret_id=abc def", f"secret_id={REDACTED} def"),
        ("{'client_secret': 'a b'}", f"{{'client_secret': '{REDACTED}'}}"),
        ("%7B%22secret_id%22%3A%22a%20b%22%7D", f"%7B%22secret_id%22%3A%22{REDACTED}%22%7D"),
        ("X-Vault-Token: root", f"X-Vault-Token: {REDACTED}"),
        ("APPJWT_VAULT_TOKEN=root", f"APPJWT_VAULT_TOKEN={REDACTED}"),
    ],
)
def test_what_is_called_a_secret_goes_although_nobody_named_it(text: str, left: str) -> None:
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "va.sentinel.liveperson.net answers 503: Service Unavailable",
        "read_token secret/liveperson/tokens/le81823118/connector-a: status 403, permission denied",
        "azp: expected 75588e18-0213-4e33-8174-883acac7e3c4, got another-app",
        "9f86d081884c7d65",
        "internalErrorCode 9007 at 2026-01-01T00:00:00Z",
        "client_secret: missing or empty",
        "vault kv patch -mount=secret liveperson/accounts/le1 client_secret=@FILE",
        "50% of the tokens &c. are \\unknown, 100%25",
    ],
)
def test_what_operators_need_to_read_stays(text: str) -> None:
    assert redacted(text) == text


@given(words, st.lists(known_secrets, max_size=2))
def test_what_comes_out_is_one_printable_line_and_stays_so(text: str, known: list[str]) -> None:
    left = redacted(text, *known)
    assert left.isprintable()
    assert left == left.strip()
    assert "  " not in left
    assert redacted(left) == left


def test_a_server_cannot_steer_the_terminal_of_whoever_reads_its_error() -> None:
    assert redacted("a\x1b[2Jb\x07c\u202ed\x00\r\ne") == "a [2Jb c d e"


def test_a_traceback_keeps_its_lines_but_not_a_secret() -> None:
    assert (
        redacted_lines(f"Traceback:\n  File x\n\tError: {SAMPLE}\x1b") == f"Traceback:\n  File x\n Error: {REDACTED} "
    )


def test_a_field_is_cleaned_as_deep_as_it_goes_and_stays_what_it_was() -> None:
    field = {
        "plain": [1, 2.5, True, None, "text", State.OK],
        SAMPLE: ({"deep": [f"Bearer {SAMPLE}"]}, {SAMPLE}),
        "bytes": SAMPLE.encode(),
        "error": ValueError(SAMPLE),
    }
    assert redact_value(field) == {
        "plain": [1, 2.5, True, None, "text", "ok"],
        REDACTED: [{"deep": [f"Bearer {REDACTED}"]}, [REDACTED]],
        "bytes": f"b'{REDACTED}'",
        "error": f"ValueError('{REDACTED}')",
    }


def test_a_token_in_json_in_a_url_goes_although_nobody_named_it() -> None:
    assert redacted(f"{quote(json.dumps(SAMPLE))} {SAMPLE.replace('.', '%2E')}") == f"%22{REDACTED}%22 {REDACTED}"


def test_an_escape_of_an_escape_and_so_on_is_read_only_so_deep() -> None:
    secret = "q7m2x9k4c8v1b6n3z5"
    shallow, deep = (f"%{'25' * times}71{secret[1:]}" for times in (1, 30))
    assert redacted(f"<{shallow}>", secret) == f"<{REDACTED}>"
    assert redacted(f"<{deep}>", secret).startswith("<%2525")


def test_a_secret_is_repeated_where_so_much_of_it_is_told_that_it_is_no_chance() -> None:
    secret = secrets.token_hex(13)
    for part in (
        secret,
        secret[:12],
        secret[-12:],
        secret.encode().hex(),
        base64.b64encode(secret.encode()).decode(),
    ):
        assert leaks(f"msg.consumer {part}", secret)
    assert leaks(f"{secret[:12]}!", secret[:12])
    for part in ("", secret[:11], secrets.token_hex(13), SAMPLE):
        assert not leaks(f"msg.consumer {part}", secret)
    assert not leaks("consumer", "consumer"), "too short to be told from a word"
