"""The status page and its JSON."""

import base64
import dataclasses
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.builders import held
from worker.core.entry import Entry
from worker.core.outcome import State
from worker.ops.page import STYLE_HASH, Page
from worker.status import Line

NOW = datetime(2027, 1, 15, 8, tzinfo=UTC)


def page(*entries: Entry, trouble: str | None = None) -> Page:
    return Page(
        entries=lambda: list(entries),
        clock=lambda: 100.0,
        now=lambda: NOW,
        synced_at=lambda: 88.0,
        vault_trouble=lambda: trouble,
        version="1.2.3",
    )


def failing(name: str = "ill", error: str = "sentinel: va answers 401", **more: Any) -> Entry:
    return Entry(name, State.FAILING, host="va", failures=3, last_error=error, failing_since=40.0, due=130.0, **more)


def words(text: bytes) -> str:
    """What a reader sees."""
    body = text.decode().partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_json_has_the_keys_of_status_and_two_more() -> None:
    (line,) = json.loads(page(failing(held=held(1800.0))).json())["accounts"]
    assert [*line] == [*(field.name for field in dataclasses.fields(Line)), "failures", "next_attempt"]
    assert line == {
        "account": "ill",
        "state": "failing",
        "life_left": 1800.0,
        "issued_at": "2027-01-15T07:30:00Z",
        "expires_at": "2027-01-15T08:30:00Z",
        "refresh_at": "2027-01-15T08:10:00Z",
        "fingerprint": "f" * 16,
        "last_error": "sentinel: va answers 401",
        "failing_since": "2027-01-15T07:59:00Z",
        "failures": 3,
        "next_attempt": "2027-01-15T08:00:30Z",
    }


def test_the_first_thing_told_is_the_least_life_left_and_whose_and_why() -> None:
    text = words(page(Entry("well", held=held(2700.0)), failing(held=held(300.0))).html())
    assert "5 min is the least life left of any token: ill has failed for 1 min: sentinel: va answers 401" in text
    assert "2 accounts: 1 ok 1 failing" in text


def test_an_account_without_a_live_token_is_told_before_all_others() -> None:
    text = words(page(Entry("well", held=held(2700.0)), failing()).html())
    assert "No live token at ill , for 1 min: sentinel: va answers 401" in text


def test_vault_and_each_host_are_told_in_words() -> None:
    well = Entry("well", host="va", held=held(2700.0))
    assert "Vault can be used; accounts compared 12 s ago va serves 1 account" in words(page(well).html())
    text = words(page(well, failing(), trouble="it is sealed").html())
    assert "Vault cannot be used it is sealed" in text
    assert "va 1 of 2 fails: sentinel: va answers 401" in text


def test_a_bar_shows_what_is_over_and_where_the_token_is_to_be_replaced() -> None:
    text = page(Entry("a", held=held(2700.0))).html().decode()
    assert '<rect class="over" width="25.0" height="8"/><rect class="planned" x="41.7"' in text


@pytest.mark.parametrize(("wanted", "shown"), [("ill", ["ill"]), ("FAILING", ["ill"]), ("401", ["ill"]), ("no", [])])
def test_the_filter_looks_at_name_state_host_and_error(wanted: str, shown: list[str]) -> None:
    text = page(Entry("well", held=held(2700.0)), failing()).html(wanted).decode()
    assert re.findall(r'<td data-of="account">(.*?)</td>', text) == shown


def test_of_a_disabled_account_nothing_is_to_be_replaced() -> None:
    text = page(Entry("off", State.DISABLED, held=held(2700.0, refresh_in=600.0))).html().decode()
    assert '<td data-of="replaced"></td>' in text


def test_of_many_accounts_the_200_that_end_first_are_shown() -> None:
    many = [Entry(f"le{number:04}", held=held(3600.0 - number)) for number in range(300)]
    text = page(*many).html().decode()
    shown = re.findall(r'<td data-of="account">(.*?)</td>', text)
    assert shown == [f"le{number:04}" for number in range(299, 99, -1)]
    assert "200 of 300 accounts" in text


def test_whatever_a_text_holds_it_stays_text() -> None:
    evil = '"><script>alert(1)</script>'
    text = page(failing(error=evil), trouble=evil).html(evil).decode()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_what_looks_like_a_secret_is_not_shown() -> None:
    told = page(failing(error="sentinel: it says client_secret=abcdefgh"))
    assert b"abcdefgh" not in told.html() + told.json()


def test_the_policy_names_the_style_that_is_there() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page().html().decode(), re.DOTALL)
    assert "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() == STYLE_HASH


def test_without_accounts_it_says_so() -> None:
    assert "No account" in words(page().html())
    assert json.loads(page().json()) == {"accounts": []}
