"""Conditions for a valid account secret, and that no error repeats a value of it."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.builders import ABSENT, ACCOUNT, CLIENT_ID, account_secret, make_account, parse_account, usable
from worker.core import account
from worker.core.account import API_VERSIONS, Absence, Account, check_name, is_name
from worker.core.errors import InvalidAccountError, Kind, Stage
from worker.liveperson.sentinel import _REQUESTS


def fault(**fields: object) -> str:
    with pytest.raises(InvalidAccountError) as caught:
        parse_account(ACCOUNT, account_secret(**fields))
    assert (caught.value.stage, caught.value.kind) == (Stage.CREDENTIALS, Kind.PERMANENT)
    return str(caught.value)


def test_client_id_and_client_secret_are_all_that_an_account_needs() -> None:
    secret = account_secret()
    found = parse_account("le81823118/connector-a", secret)
    assert found.client_secret.get_secret_value() == secret["client_secret"]
    assert found == Account("le81823118/connector-a", ACCOUNT, CLIENT_ID, found.client_secret)


def test_all_that_an_account_may_say_is_taken_over() -> None:
    secret = account_secret(
        account_id="12345678", sentinel_domain="lo.sentinel.liveperson.net", scope="msg.consumer", api_version="1.0"
    )
    found = parse_account("any-name", secret)
    assert (found.account_id, found.sentinel_domain, found.scope, found.api_version) == (
        "12345678",
        "lo.sentinel.liveperson.net",
        "msg.consumer",
        "1.0",
    )


def test_fields_that_are_not_ours_are_left_alone_and_their_names_known() -> None:
    everything = dict.fromkeys(("account_id", "sentinel_domain", "api_version", "scope")) | {"enabled": True}
    assert parse_account(ACCOUNT, account_secret(**everything)).unknown_fields == ()
    # as the names of accounts and of what is remembered of them: no fields of theirs
    odd = {"owner": "team x", "note": ["any", 1], "enable": False, "name": "x", "unknown_fields": "y"}
    assert parse_account(ACCOUNT, account_secret(**odd)).unknown_fields == (
        "enable",
        "name",
        "note",
        "owner",
        "unknown_fields",
    )


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_field_is_an_absent_one(nothing: object) -> None:
    found = parse_account(ACCOUNT, account_secret(account_id=nothing, sentinel_domain=nothing, scope=nothing))
    assert (found.account_id, found.sentinel_domain, found.scope) == (ACCOUNT, None, None)


@pytest.mark.parametrize("no", [False, "false"])
def test_an_account_can_be_kept_out_without_its_credentials_being_looked_at(no: object) -> None:
    assert account.parse(ACCOUNT, {"enabled": no}) is Absence.DISABLED


@pytest.mark.parametrize("yes", [True, "true", ABSENT])
def test_an_account_is_in_unless_it_says_otherwise(yes: object) -> None:
    assert parse_account(ACCOUNT, account_secret(enabled=yes)).name == ACCOUNT


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"enabled": "no"}, 'enabled: must be true or false (or "true", "false")'),
        ({"enabled": []}, 'enabled: must be true or false (or "true", "false")'),
        ({"client_id": ABSENT}, "client_id: missing or empty"),
        ({"client_secret": ""}, "client_secret: missing or empty"),
        ({"client_id": ABSENT, "Client-ID": "x"}, "client_id: missing or empty (there is 'Client-ID': rename it)"),
        ({"client_id": ABSENT, "cleint_id": "x"}, "client_id: missing or empty (there is 'cleint_id': rename it)"),
        ({"client_id": ABSENT, "client": "x"}, "client_id: missing or empty"),
        ({"client_secret": 7}, "client_secret: must be a string, is a number"),
        ({"client_secret": True}, "client_secret: must be a string, is true or false"),
        ({"client_secret": ["x"]}, "client_secret: must be a string, is a list"),
        ({"client_secret": {"x": "y"}}, "client_secret: must be a string, is an object"),
        ({"client_secret": "x y"}, "client_secret: holds a space, a line break or a character outside ASCII"),
        ({"client_secret": "x\n"}, "client_secret: holds a space, a line break or a character outside ASCII"),
        ({"client_secret": "\u00e4"}, "client_secret: holds a space, a line break or a character outside ASCII"),
        ({"client_secret": "x" * 1025}, "client_secret: is longer than 1024 characters"),
        ({"account_id": 12345678}, "account_id: must be a string, is a number"),
        (
            {"account_id": "../admin"},
            "account_id: must be 1 to 64 letters, digits, - or _ (default: the name's first part)",
        ),
        (
            {"account_id": "x" * 65},
            "account_id: must be 1 to 64 letters, digits, - or _ (default: the name's first part)",
        ),
        ({"scope": 1.5}, "scope: must be a string, is a number"),
        ({"scope": "two scopes"}, "scope: holds a space, a line break or a character outside ASCII"),
    ],
)
def test_a_fault_is_told_with_the_field_and_what_is_right(fields: dict[str, object], text: str) -> None:
    assert fault(**fields) == text


def test_a_value_may_have_1024_characters() -> None:
    assert parse_account(ACCOUNT, account_secret(client_id="x" * 1024)).client_id == "x" * 1024


def test_every_api_version_that_an_account_may_name_is_one_that_the_client_can_ask_for() -> None:
    assert set(_REQUESTS) == set(API_VERSIONS)


def test_an_unknown_api_version_is_told_with_those_there_are() -> None:
    assert fault(api_version="3.0") == "api_version: must be one of 1.0, 2.0"


def test_an_accounts_secret_is_never_seen_in_its_repr() -> None:
    found = parse_account(ACCOUNT, secret := account_secret())
    assert str(secret["client_secret"]) not in repr(found) + str(found)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(max_size=3), max_size=2)
fields = st.sampled_from(["client_id", "client_secret", "account_id", "enabled", "scope", "api_version", "Client_ID"])


@given(st.dictionaries(fields, values))
def test_whatever_a_secret_holds_it_is_an_account_or_a_fault_that_names_a_field(secret: dict[str, object]) -> None:
    try:
        found = account.parse(ACCOUNT, secret)
    except InvalidAccountError as error:
        field, _, _ = str(error).partition(":")
    else:
        assert found is Absence.DISABLED or usable(found).client_id == secret["client_id"]
        return
    assert field in {*secret, "client_id", "client_secret"}


@given(st.text("abcXYZ0189 \n\u00e4", min_size=8), fields)
def test_no_fault_repeats_a_value(value: str, key: str) -> None:
    """Somebody may have put the secret into the wrong field."""
    marked = f"s3cr3t-{value} "  # the space makes it wrong in any field
    assert "s3cr3t" not in fault(**{"client_id": ABSENT, key: marked})


@pytest.mark.parametrize(
    "name",
    [
        *("le81823118", "le81823118/connector-a", "a/b/c/d", "a@b.c+d=e_f", "1", "X", "a..b", ".hidden"),
        "x" * 128,
        "/".join(["x" * 127] * 3 + ["x" * 128]),  # 512 in all
    ],
)
def test_these_are_names_of_accounts(name: str) -> None:
    assert is_name(name)
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a/..."),
        *("a b", "a\n", "a?x=1", "a#b", "a%2fb", "a\\b", "a:b", "a;b", "\u00e4"),
        "x" * 129,
        "/".join(["x" * 127] * 3 + ["x" * 64] * 2),  # 513 in all
    ],
)
def test_these_are_not_for_they_would_mean_another_path(name: str) -> None:
    assert not is_name(name), json.dumps(name)
    with pytest.raises(InvalidAccountError, match="an account's name holds letters, digits and"):
        check_name(name)


def test_of_a_wrong_name_no_more_than_eighty_characters_are_told() -> None:
    with pytest.raises(InvalidAccountError) as caught:
        check_name("x" * 1000)
    assert str(caught.value).startswith(f"'{'x' * 80}': ")


# Whether it was edited


def test_each_field_makes_a_difference_to_the_digest_and_the_key_too() -> None:
    account = make_account("le1/app")
    digest = account.digest(b"key")
    edited = {
        "name": "le1/other",
        "account_id": "le2",
        "client_id": "another",
        "client_secret": SecretStr("another"),
        "sentinel_domain": "va.example",
        "api_version": "2.0",
        "scope": "another",
        "unknown_fields": ("another",),
    }
    assert edited.keys() == {each.name for each in dataclasses.fields(account)}
    assert digest == dataclasses.replace(account).digest(b"key")
    digests = {dataclasses.replace(account, **{key: value}).digest(b"key") for key, value in edited.items()}  # type: ignore[arg-type] # by name
    assert len(digests | {digest, account.digest(b"other")}) == 10
    assert len(digest) == 64
