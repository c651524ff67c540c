"""Rules for a valid account secret, each by a secret that is right but for one thing."""

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import secrets, words
from worker.core.account import Absence, check_name, parse
from worker.core.errors import InvalidAccountError

_FIELDS = ("client_id", "client_secret", "account_id", "sentinel_domain", "api_version", "scope")
_REQUIRED = st.sampled_from(["client_id", "client_secret"])
MARK = "s3cr3t"
"""In each value that is wrong: somebody may have put the secret into the wrong field."""

right = st.fixed_dictionaries(
    {"client_id": words, "client_secret": secrets},
    optional={
        "account_id": st.text("abcXYZ09-_", min_size=1, max_size=64),
        "sentinel_domain": words,
        "api_version": st.sampled_from(["1.0", "2.0", "", None]),
        "scope": words,
        "enabled": st.sampled_from([True, "true"]),
        "x": words,
    },
)


def _changed(case: str, key: st.SearchStrategy[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[Input]:
    return st.builds(lambda secret, key, value: _input(case, {**secret, key: value}, key), right, key, value)


def _input(case: str, secret: dict[str, Any], key: str = "", name: str = "le1/x") -> Input:
    return {"case": case, "name": name, "secret": secret, "key": key}


def _without(case: str, spelling: Any) -> st.SearchStrategy[Input]:
    def made(secret: dict[str, Any], key: str, number: int) -> Input:
        left = {each: value for each, value in secret.items() if each != key}
        return _input(case, {**left, **spelling(key, number)}, key)

    return st.builds(made, right, _REQUIRED, st.integers(0, 2))


_spelt = (str.upper, str.title, lambda key: key.replace("_", "-"))
_segments = st.text("abcXYZ09@.+=_-", min_size=1, max_size=128).filter(lambda segment: segment.strip("."))
_bad_segments = st.sampled_from(
    ["", ".", "..", "...", "a b", "a?b", "a#b", "a%2fb", "a\\b", "a:b", "\u00e4", "a\n", "x" * 129]
)

CASES: dict[str, st.SearchStrategy[Input]] = {
    "accepted": st.builds(
        lambda secret, names: _input("accepted", secret, name="/".join(["le1", *names])),
        right,
        st.lists(_segments, max_size=3),
    ),
    "disabled": _changed("disabled", st.just("enabled"), st.sampled_from([False, "false", 0, 0.0])),
    "name": st.builds(
        lambda secret, before, bad, after: _input("name", secret, name="/".join([*before, bad, *after])),
        right,
        st.lists(_segments, max_size=2),
        _bad_segments,
        st.lists(_segments, max_size=2),
    ),
    "name too long": st.builds(
        lambda secret, last: _input("name too long", secret, name="/".join([*["x" * 120] * 4, "y" * 28 + last])),
        right,
        st.text("abc", min_size=2, max_size=60),
    ),
    "enabled": _changed("enabled", st.just("enabled"), st.sampled_from(["no", "", "False", None, [], {}, 2, MARK])),
    "account_id": _changed(
        "account_id", st.just("account_id"), st.sampled_from([f"{MARK}/..", MARK + "." * 9, MARK * 11, "a?b", "a%2e"])
    ),
    "api_version": _changed("api_version", st.just("api_version"), st.sampled_from(["3.0", "1", MARK, "v1.0"])),
    "missing": _without("missing", lambda _key, _number: {}),
    "misspelt": _without("misspelt", lambda key, number: {_spelt[number](key): MARK}),
    "type": _changed(
        "type",
        st.sampled_from(_FIELDS),
        st.integers() | st.booleans() | st.floats() | st.lists(words, max_size=2) | st.just({MARK: MARK}),
    ),
    "character": _changed(
        "character",
        st.sampled_from(_FIELDS),
        st.sampled_from([" ", "\n", "\t", "\x7f", "\u00e4", "\x00", "\x1b[2J", "\ud800", "\u202e"]).flatmap(
            lambda bad: st.sampled_from([MARK + bad, bad + MARK, f"{MARK}{bad}{MARK}"])
        ),
    ),
    "too long": _changed("too long", st.sampled_from(_FIELDS), st.integers(1025, 3000).map(lambda n: (MARK * n)[:n])),
}
_ORDER = (("is longer than", "too long"), ("holds a space", "character"), ("must be a string", "type"))


def run(value: Input) -> str:
    try:
        check_name(value["name"])
        account = parse(value["name"], value["secret"])
    except InvalidAccountError as error:
        return _refused(str(error), value)
    if isinstance(account, Absence):
        return account.value
    secret = value["secret"]
    assert account.client_secret.get_secret_value() == secret["client_secret"]
    assert secret["client_secret"] not in repr(account)
    assert account.account_id == (secret.get("account_id") or "le1")
    return "accepted"


def _refused(text: str, value: Input) -> str:
    assert text.isprintable(), text
    assert len(text) < 250, text
    assert MARK not in text, text
    if "account's name holds" in text:
        return "name too long" if value["case"] == "name too long" else "name"
    assert text.startswith(value["key"]), text
    if "rename it" in text:
        return "misspelt"
    if "missing or empty" in text:
        return "missing"
    return next((case for words, case in _ORDER if words in text), value["key"])


TARGET = Target("account", CASES, run)
