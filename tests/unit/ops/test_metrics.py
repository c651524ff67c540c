"""What Prometheus reads."""

import shutil
import subprocess
from datetime import datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import app_jwt, held
from tests.fakes.clock import HOUR, Clock
from worker.core.entry import Entry
from worker.core.errors import Kind
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Reason
from worker.ops.metrics import Metrics

NOW = 1_800_000_000.0
"""Vault's clock, at the steady moment 100."""


class Scraped:
    def __init__(self, *entries: Entry) -> None:
        self.entries = list(entries)
        self.metrics = Metrics(
            version="1.2.3",
            entries=lambda: self.entries,
            clock=lambda: 100.0,
            now=lambda: datetime.fromtimestamp(NOW, Clock().now().tzinfo),
            login_ends=lambda: 700.0,
            synced_at=lambda: 90.0,
        )

    def read(self) -> dict[str, float]:
        """By name and labels as they are written."""
        return {
            sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
        }


def following(lag: float | None = None) -> Next:
    return Next(State.OK, State.OK, 0, 0.0, None, 0.0, lag)


def test_each_account_has_its_moments_in_unix_time_by_vaults_clock() -> None:
    read = Scraped(Entry("le1", held=held(1800.0), last_success=40.0)).read()
    assert read["appjwt_token_issued_timestamp_seconds{le1}"] == NOW - 1800
    assert read["appjwt_token_refresh_timestamp_seconds{le1}"] == NOW + 600
    assert read["appjwt_token_expiry_timestamp_seconds{le1}"] == NOW + 1800
    assert read["appjwt_last_success_timestamp_seconds{le1}"] == NOW - 60
    assert read["appjwt_vault_login_expiry_timestamp_seconds"] == NOW + 600
    assert read["appjwt_last_sync_timestamp_seconds"] == NOW - 10
    assert read["appjwt_build_info{1.2.3}"] == 1


def test_whatever_an_account_is_called_the_text_stays_one() -> None:
    odd = 'le"1\\n\n'
    read = Scraped(Entry(odd, State.INVALID, failures=1), Entry("le2")).read()
    assert read[f"appjwt_consecutive_failures{{{odd}}}"] == read[f"appjwt_account_state{{{odd},invalid}}"] == 1
    assert read["appjwt_consecutive_failures{le2}"] == 0


def test_accounts_are_counted_by_state_and_those_that_are_not_ok_are_named() -> None:
    read = Scraped(
        Entry("well", held=held(9.0)),
        Entry("ill", State.FAILING, failures=3, kind=Kind.LASTING),
        Entry("off", State.DISABLED),
    ).read()
    assert {state: read[f"appjwt_accounts{{{state}}}"] for state in State} == {
        "ok": 1,
        "failing": 1,
        "disabled": 1,
        "invalid": 0,
        "foreign": 0,
        "removed": 0,
    }
    assert read["appjwt_consecutive_failures{ill}"] == 3
    assert read["appjwt_account_state{ill,failing}"] == read["appjwt_account_state{off,disabled}"] == 1
    assert "appjwt_account_state{well,ok}" not in read


def test_the_series_of_an_account_that_goes_go_with_it() -> None:
    scraped = Scraped(Entry("le1", held=held(9.0), last_success=1.0))
    assert any("le1" in name for name in scraped.read())
    scraped.entries.clear()
    assert not any("le1" in name for name in scraped.read())


@pytest.mark.parametrize(
    ("entries", "least"),
    [
        ([Entry("a", held=held(1800.0)), Entry("b", held=held(900.0))], (900.0, 0.25)),
        ([Entry("a", held=held(1800.0)), Entry("b", State.FAILING)], (0.0, 0.0)),
        ([Entry("a", held=held(1800.0)), Entry("b", State.INVALID, held=held(90.0))], (90.0, 0.025)),
        ([Entry("a", held=held(1800.0)), Entry("b", State.INVALID), Entry("c", State.FOREIGN)], (1800.0, 0.5)),
        ([Entry("a", held=held(1800.0)), Entry("b", State.DISABLED, held=held(-5.0)), Entry("new")], (1800.0, 0.5)),
    ],
)
def test_the_least_life_left_is_that_of_accounts_whose_readers_wait(
    entries: list[Entry], least: tuple[float, float]
) -> None:
    read = Scraped(*entries).read()
    assert (read["appjwt_min_life_left_seconds"], read["appjwt_min_life_left_ratio"]) == least


def test_without_accounts_there_is_no_least_life() -> None:
    assert "appjwt_min_life_left_seconds" not in Scraped().read()


def test_attempts_are_counted_by_what_became_of_them() -> None:
    scraped = Scraped()
    token = app_jwt(Clock().now(), HOUR)
    renewed = Outcome("a", Result.REFRESHED, 0.2, reason=Reason.DUE, token=token, left_at_replacement=1800.0)
    scraped.metrics.report(renewed, following(lag=0.3))
    scraped.metrics.report(Outcome("a", Result.ADOPTED, 0.1), following())
    scraped.metrics.report(Outcome("a", Result.SKIPPED, 0.1), following())
    read = scraped.read()
    assert read["appjwt_refreshes_total{refreshed,due}"] == 1
    assert read["appjwt_refreshes_total{adopted,}"] == read["appjwt_refreshes_total{skipped,}"] == 1
    assert (read["appjwt_refresh_duration_seconds_count"], read["appjwt_schedule_lag_seconds_sum"]) == (2, 0.3)
    assert read["appjwt_life_left_at_replacement_ratio_bucket{0.5}"] == 1
    assert read["appjwt_life_left_at_replacement_ratio_bucket{0.45}"] == 0


def test_what_never_happened_is_counted_too_so_that_the_first_time_is_a_rise() -> None:
    assert Scraped().read()["appjwt_refreshes_total{refreshed,drift}"] == 0


def test_requests_are_counted_by_answer_and_what_never_answered_too() -> None:
    scraped = Scraped()
    scraped.metrics.sentinel_asked("va", 200, 0.1, datetime.now(Clock().now().tzinfo) - timedelta(seconds=90))
    scraped.metrics.sentinel_asked("va", None, 10.0, None)
    scraped.metrics.vault_asked("write_token", 400, 0.1)
    read = scraped.read()
    assert read["appjwt_sentinel_requests_total{va,200}"] == read["appjwt_sentinel_requests_total{va,none}"] == 1
    assert read["appjwt_sentinel_request_duration_seconds_count{va}"] == 2
    assert read["appjwt_vault_requests_total{write_token,400}"] == 1
    assert 89 < read["appjwt_clock_skew_seconds{sentinel}"] < 95
    assert "appjwt_clock_skew_seconds{vault}" in read


@pytest.mark.tool("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    scraped = Scraped(Entry("le1", State.FAILING, held=held(9.0), last_success=1.0))
    scraped.metrics.report(Outcome("a", Result.FAILED, 0.1, reason=Reason.DUE), following(0.1))
    scraped.metrics.sentinel_asked("va", 200, 0.1, Clock().now())
    scraped.metrics.vault_asked("login", 200, 0.1)
    checked = subprocess.run(
        [str(shutil.which("promtool")), "check", "metrics"],
        input=scraped.metrics.text(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
