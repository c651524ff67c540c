"""The status page and its JSON."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.builders import tracked
from worker.core.outcome import State
from worker.core.record import AccountRecord
from worker.core.status import record_status
from worker.ops.page import STYLE_HASH, Page

NOW = datetime(2027, 1, 15, 8, tzinfo=UTC)


def page(*entries: AccountRecord, trouble: str | None = None, skew: float = 0.0) -> Page:
    return Page(
        records=lambda: list(entries),
        clock=lambda: 100.0,
        now=lambda: NOW,
        synced_at=lambda: 88.0,
        vault_error=lambda: trouble,
        skew=lambda: skew,
        version="1.2.3",
    )


def failing(name: str = "ill", error: str = "sentinel: va answers 401", **more: Any) -> AccountRecord:
    return AccountRecord(
        name, State.FAILING, host="va", failures=3, last_error=error, failing_since=40.0, due=130.0, **more
    )


def words(text: bytes) -> str:
    """Return the text that a reader sees."""
    body = text.decode().partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_json_has_the_keys_of_status_and_two_more() -> None:
    (line,) = json.loads(page(failing(tracked=tracked(1800.0))).json())["accounts"]
    ill = failing(tracked=tracked(1800.0))
    assert [*line] == [*record_status(ill, 100.0, NOW).as_json(), "failures", "next_attempt"]
    assert line == {
        "account": "ill",
        "state": "failing",
        "remaining": 1800.0,
        "margin": 1.5,
        "issued_at": "2027-01-15T07:30:00Z",
        "expires_at": "2027-01-15T08:30:00Z",
        "refresh_at": "2027-01-15T08:10:00Z",
        "fingerprint": "f" * 16,
        "last_error": "sentinel: va answers 401",
        "failing_since": "2027-01-15T07:59:00Z",
        "failures": 3,
        "next_attempt": "2027-01-15T08:00:30Z",
    }


def test_the_first_thing_shown_is_the_least_remaining_lifetime_and_whose_and_why() -> None:
    text = words(page(AccountRecord("well", tracked=tracked(2700.0)), failing(tracked=tracked(300.0))).html({}))
    assert "5 min is the shortest remaining lifetime: ill has failed for 1 min: sentinel: va answers 401" in text
    assert "2 accounts: 1 ok 1 failing" in text


def shown_accounts(text: bytes) -> list[str]:
    return re.findall(r'<td data-of="account"[^>]*>(.*?)</td>', text.decode())


def test_accounts_without_a_live_token_come_first_with_their_number_and_the_longest_of_them() -> None:
    well = AccountRecord("well", tracked=tracked(2700.0))
    text = words(page(well, failing()).html({}))
    assert "1 account without a live token ill , since 07:59:00 UTC: sentinel: va answers 401 2 accounts:" in text
    expired = [failing(f"expired-{ago}", tracked=tracked(-float(ago))) for ago in (20, 300, 100)]
    shown = page(well, failing(), *expired).html({})
    assert "4 accounts without a live token the longest, expired-300 , since 07:55:00 UTC:" in words(shown)
    assert shown_accounts(shown) == ["expired-300", "expired-100", "ill", "expired-20", "well"]


def test_vault_and_each_host_are_told_in_words() -> None:
    well = AccountRecord("well", host="va", tracked=tracked(2700.0))
    assert "Vault can be used; accounts compared 12 s ago va serves 1 account" in words(page(well).html({}))
    text = words(page(well, failing(), trouble="it is sealed").html({}))
    assert "Vault cannot be used it is sealed" in text
    assert "va 1 of 2 fails: sentinel: va answers 401" in text


def test_a_hosts_failures_are_counted_by_cause() -> None:
    errors = [*["sentinel: va answers 401"] * 3, *["claims: azp"] * 2, "sentinel: a", "sentinel: b"]
    ill = [failing(f"ill{number}", error) for number, error in enumerate(errors)]
    text = words(page(*ill).html({}))
    assert "va 7 of 7 fail: 3x sentinel: va answers 401; 2x claims: azp; 1x sentinel: a Filter" in text


@pytest.mark.parametrize(("skew", "text"), [(90.0, "1 min 30 s behind"), (-3600.0, "1 h ahead of")])
def test_clocks_that_differ_are_shown(skew: float, text: str) -> None:
    assert f"clocks differ Vault's clock is {text} Sentinel's" in words(page(failing(), skew=skew).html({}))


def test_a_bar_shows_what_is_over_and_where_the_token_is_to_be_replaced() -> None:
    text = page(AccountRecord("a", tracked=tracked(2700.0))).html({}).decode()
    assert '<rect class="over" width="25.0" height="8"/><rect class="planned" x="41.7"' in text


@pytest.mark.parametrize(("wanted", "shown"), [("ill", ["ill"]), ("FAILING", ["ill"]), ("401", ["ill"]), ("no", [])])
def test_the_filter_looks_at_name_state_host_and_error(wanted: str, shown: list[str]) -> None:
    text = page(AccountRecord("well", tracked=tracked(2700.0)), failing()).html({"q": wanted})
    assert shown_accounts(text) == shown


def test_of_a_disabled_account_nothing_is_to_be_replaced() -> None:
    text = page(AccountRecord("off", State.DISABLED, tracked=tracked(2700.0, refresh_in=600.0))).html({}).decode()
    assert '<td data-of="next" class="whole"></td>' in text


def test_what_comes_next_is_a_retry_or_the_planned_refresh() -> None:
    well = AccountRecord("well", tracked=tracked(2700.0, planned_in=900.0), due=1000.0)
    text = page(well, failing()).html({}).decode()
    assert re.findall(r'<td data-of="next"[^>]*>(.*?)</td>', text) == ["retry in 30 s", "refresh in 15 min"]


def test_columns_that_are_empty_in_each_row_are_left_out() -> None:
    headings = [
        re.findall("<th>(.*?)</th>", page(each).html({}).decode()) for each in (AccountRecord("new"), failing())
    ]
    assert headings == [["account", "state", "remaining", "next"], ["account", "state", "remaining", "next", "error"]]


@pytest.mark.parametrize(
    ("left", "style"), [(1200.0, "well"), (600.0, "well"), (599.0, "warn"), (240.0, "warn"), (239.0, "alarm")]
)
def test_a_row_is_coloured_by_the_margin(left: float, style: str) -> None:
    # 40 minutes of an hour were planned to be over: what was left then is 20 minutes
    text = page(AccountRecord("a", tracked=tracked(left, planned_in=left - 1200.0))).html({}).decode()
    assert f'<tr class="{style}">' in text


def test_the_plan_shown_is_that_of_the_token_s_writer() -> None:
    asked_again = AccountRecord("a", tracked=tracked(1800.0, refresh_in=900.0, planned_in=-900.0))
    assert '<td data-of="next" class="whole">refresh now</td>' in page(asked_again).html({}).decode()
    assert json.loads(page(asked_again).json())["accounts"][0]["refresh_at"] == "2027-01-15T07:45:00Z"


def test_of_an_account_that_was_not_read_yet_nothing_is_told() -> None:
    text = page(AccountRecord("new")).html({}).decode()
    assert '<tr class="">' in text
    assert json.loads(page(AccountRecord("new")).json())["accounts"][0]["margin"] is None


def test_of_many_accounts_the_200_that_end_first_are_shown_and_the_rest_on_the_next_page() -> None:
    many = [AccountRecord(f"le{number:04}", tracked=tracked(3600.0 - number)) for number in range(300)]
    shown = page(*many)
    first, second = shown.html({"q": "le"}), shown.html({"q": "le", "from": "200"})
    assert shown_accounts(first) + shown_accounts(second) == [f"le{number:04}" for number in range(299, -1, -1)]
    assert "1 to 200 of 300 accounts with “le”" in words(first)
    assert "201 to 300 of 300" in words(second)
    assert re.findall('<a href="(.*?)">', first.decode())[-1] == "?q=le&amp;from=200"
    assert re.findall('<a href="(.*?)">', second.decode())[-1] == "?q=le&amp;from=0"


@pytest.mark.parametrize("number", ["", "x", "-1", "²", "1" * 200])
def test_a_page_that_does_not_exist_is_the_first(number: str) -> None:
    assert shown_accounts(page(failing()).html({"from": number})) == ["ill"]


def test_whatever_a_text_holds_it_stays_text() -> None:
    evil = '"><script>alert(1)</script>'
    text = page(failing(error=evil), trouble=evil).html({"q": evil}).decode()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_what_looks_like_a_secret_is_not_shown() -> None:
    shown_page = page(failing(error="sentinel: it says client_secret=abcdefgh"))
    assert b"abcdefgh" not in shown_page.html({}) + shown_page.json()


def test_the_policy_names_the_style_that_is_there() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page().html({}).decode(), re.DOTALL)
    assert "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() == STYLE_HASH


@pytest.mark.parametrize("state", [State.INVALID, State.UNMANAGED, State.DISABLED])
def test_an_account_that_never_had_a_token_and_cannot_have_one_is_no_dead_token(state: State) -> None:
    never = AccountRecord("never", state, failures=1, last_error="credentials: client_id: missing", due=130.0)
    assert "No live token No account needs one, or had one before" in words(page(never).html({}))
    text = page(never, AccountRecord("well", tracked=tracked(2700.0))).html({})
    assert "45 min is the shortest remaining lifetime: well" in words(text)
    assert shown_accounts(text) == (["well", "never"] if state is State.DISABLED else ["never", "well"])


def test_without_accounts_it_says_so() -> None:
    assert "No account" in words(page().html({}))
    assert "Vault cannot be used it is sealed" in words(page(trouble="it is sealed").html({}))
    assert json.loads(page().json()) == {"accounts": []}
