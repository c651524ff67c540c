"""The metrics as Prometheus reads them."""

import shutil
import subprocess
from datetime import datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import app_jwt, tracked
from tests.fakes.clock import HOUR, Clock
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason
from worker.core.record import AccountRecord
from worker.ops.metrics import Metrics

NOW = 1_800_000_000.0
"""Vault's clock, at the steady moment 100."""


class Scraped:
    def __init__(self, *entries: AccountRecord, synced_at: float | None = 90.0) -> None:
        self.records = list(entries)
        self.vault_error: str | None = None
        self.metrics = Metrics(
            version="1.2.3",
            records=lambda: self.records,
            clock=lambda: 100.0,
            now=lambda: datetime.fromtimestamp(NOW, Clock().now().tzinfo),
            vault_now=lambda: datetime.fromtimestamp(NOW, Clock().now().tzinfo),
            vault_error=lambda: self.vault_error,
            login_expiry=lambda: 700.0,
            synced_at=lambda: synced_at,
        )

    def read(self) -> dict[str, float]:
        """Return the samples, by name and labels as they are written."""
        return {
            sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
        }


def transition(lag: float | None = None) -> Transition:
    return Transition(State.OK, State.OK, 0, 0.0, None, 0.0, lag)


def test_each_account_has_its_moments_in_unix_time_by_vaults_clock() -> None:
    read = Scraped(AccountRecord("le1", tracked=tracked(1800.0), last_success=40.0)).read()
    assert read["appjwt_token_issued_timestamp_seconds{le1}"] == NOW - 1800
    assert read["appjwt_token_refresh_timestamp_seconds{le1}"] == NOW + 600
    assert read["appjwt_token_expiry_timestamp_seconds{le1}"] == NOW + 1800
    assert read["appjwt_last_success_timestamp_seconds{le1}"] == NOW - 60
    assert read["appjwt_vault_login_expiry_timestamp_seconds"] == NOW + 600
    assert read["appjwt_last_sync_timestamp_seconds"] == NOW - 10
    assert read["appjwt_build_info{1.2.3}"] == 1


def test_whether_vault_can_be_used_is_there_from_the_first_scrape() -> None:
    scraped = Scraped()
    assert scraped.read()["appjwt_vault_usable"] == 1
    scraped.vault_error = "list: status 403"
    assert scraped.read()["appjwt_vault_usable"] == 0


def test_whatever_an_account_is_called_the_text_stays_one() -> None:
    odd = 'le"1\\n\n'
    read = Scraped(AccountRecord(odd, State.INVALID, failures=1), AccountRecord("le2")).read()
    assert read[f"appjwt_consecutive_failures{{{odd}}}"] == read[f"appjwt_account_state{{{odd},invalid}}"] == 1
    assert read["appjwt_consecutive_failures{le2}"] == 0


def test_accounts_are_counted_by_state_and_those_that_are_not_ok_are_named() -> None:
    read = Scraped(
        AccountRecord("well", tracked=tracked(1800.0)),
        AccountRecord("late", tracked=tracked(299.0, refresh_in=-301.0)),
        AccountRecord("ill", State.FAILING, failures=3, kind=Kind.PERMANENT),
        AccountRecord("off", State.DISABLED),
    ).read()
    assert {state: read[f"appjwt_accounts{{{state}}}"] for state in State} == {
        "ok": 1,
        "failing": 2,
        "disabled": 1,
        "invalid": 0,
        "unmanaged": 0,
        "removed": 0,
    }
    assert read["appjwt_consecutive_failures{ill}"] == 3
    assert read["appjwt_account_state{ill,failing}"] == read["appjwt_account_state{off,disabled}"] == 1
    assert read["appjwt_account_state{late,failing}"] == 1
    assert "appjwt_account_state{well,ok}" not in read


def test_the_series_of_an_account_that_goes_go_with_it() -> None:
    scraped = Scraped(AccountRecord("le1", tracked=tracked(9.0), last_success=1.0))
    assert any("le1" in name for name in scraped.read())
    scraped.records.clear()
    assert not any("le1" in name for name in scraped.read())


@pytest.mark.parametrize(
    ("entries", "least"),
    [
        ([AccountRecord("a", tracked=tracked(1800.0)), AccountRecord("b", tracked=tracked(900.0))], (900.0, 0.25)),
        ([AccountRecord("a", tracked=tracked(1800.0)), AccountRecord("b", State.FAILING)], (0.0, 0.0)),
        (
            [AccountRecord("a", tracked=tracked(1800.0)), AccountRecord("b", State.INVALID, tracked=tracked(90.0))],
            (90.0, 0.025),
        ),
        (
            [
                AccountRecord("a", tracked=tracked(1800.0)),
                AccountRecord("b", State.INVALID),
                AccountRecord("c", State.UNMANAGED),
            ],
            (1800.0, 0.5),
        ),
        (
            [
                AccountRecord("a", tracked=tracked(1800.0)),
                AccountRecord("b", State.DISABLED, tracked=tracked(-5.0)),
                AccountRecord("new"),
            ],
            (1800.0, 0.5),
        ),
    ],
)
def test_the_least_remaining_lifetime_is_that_of_accounts_whose_readers_wait(
    entries: list[AccountRecord], least: tuple[float, float]
) -> None:
    read = Scraped(*entries).read()
    assert (read["appjwt_min_remaining_seconds"], read["appjwt_min_remaining_ratio"]) == least


def test_the_least_margin_is_relative_to_each_token_s_plan() -> None:
    early = AccountRecord("early", tracked=tracked(1800.0, refresh_in=0.0))
    late = AccountRecord("late", tracked=tracked(900.0, refresh_in=600.0, planned_in=450.0))
    assert Scraped(early).read()["appjwt_min_margin_ratio"] == 1
    assert Scraped(late).read()["appjwt_min_margin_ratio"] == 2
    assert Scraped(early, late).read()["appjwt_min_margin_ratio"] == 1
    assert Scraped(early, late, AccountRecord("ill", State.FAILING)).read()["appjwt_min_margin_ratio"] == 0


def test_before_the_first_sync_the_last_one_is_the_process_s_start_and_there_is_no_least_life() -> None:
    read = Scraped(synced_at=None).read()
    assert read["appjwt_last_sync_timestamp_seconds"] == NOW
    assert not [name for name in read if name.startswith("appjwt_min_")]


def test_attempts_are_counted_by_what_became_of_them() -> None:
    scraped = Scraped()
    token = app_jwt(Clock().now(), HOUR)
    renewed = Outcome("a", Result.REFRESHED, 0.2, reason=Reason.DUE, token=token, remaining_at_refresh=1800.0)
    scraped.metrics.report(renewed, transition(lag=0.3))
    scraped.metrics.report(Outcome("a", Result.ADOPTED, 0.1), transition())
    scraped.metrics.report(Outcome("a", Result.NOT_EXPIRING, 0.1), transition())
    read = scraped.read()
    assert read["appjwt_refreshes_total{refreshed,due}"] == 1
    assert read["appjwt_refreshes_total{adopted,}"] == read["appjwt_refreshes_total{skipped,}"] == 1
    assert (read["appjwt_refresh_duration_seconds_count"], read["appjwt_schedule_lag_seconds_sum"]) == (2, 0.3)
    assert read["appjwt_remaining_at_refresh_ratio_bucket{0.5}"] == 1
    assert read["appjwt_remaining_at_refresh_ratio_bucket{0.45}"] == 0


def test_the_process_has_its_metrics() -> None:
    read = Scraped().read()
    assert read["process_resident_memory_bytes"] > 1e6
    assert read["process_open_fds"] > 2


def test_failures_are_counted_by_stage_and_by_the_kind_that_they_are_by_now() -> None:
    scraped = Scraped()
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "va answers 500", status=500)
    failed = Outcome("a", Result.FAILED, 0.1, error=error)
    for kind in (Kind.TRANSIENT, Kind.PERMANENT, Kind.PERMANENT):
        scraped.metrics.report(failed, Transition(State.OK, State.FAILING, 1, 0.0, kind, 0.0))
    read = scraped.read()
    counted = {
        name: value for name, value in read.items() if name.startswith("appjwt_refresh_failures_total") and value
    }
    assert counted == {
        "appjwt_refresh_failures_total{transient,sentinel}": 1,
        "appjwt_refresh_failures_total{permanent,sentinel}": 2,
    }


def test_what_never_happened_is_counted_too_so_that_the_first_time_is_a_rise() -> None:
    read = Scraped().read()
    assert read["appjwt_refreshes_total{refreshed,drift}"] == 0
    assert all(read[f"appjwt_refresh_failures_total{{{kind},{stage}}}"] == 0 for stage in Stage for kind in Kind)


def test_requests_are_counted_by_answer_and_what_never_answered_too() -> None:
    scraped = Scraped()
    scraped.metrics.observe_sentinel_request("va", 200, 0.1, datetime.now(Clock().now().tzinfo) - timedelta(seconds=90))
    scraped.metrics.observe_sentinel_request("va", None, 10.0, None)
    scraped.metrics.observe_vault_request("write_token", 400, 0.1)
    read = scraped.read()
    assert read["appjwt_sentinel_requests_total{va,200}"] == read["appjwt_sentinel_requests_total{va,none}"] == 1
    assert read["appjwt_sentinel_request_duration_seconds_count{va}"] == 2
    assert read["appjwt_vault_requests_total{write_token,400}"] == 1
    assert 89 < read["appjwt_clock_skew_seconds{sentinel}"] < 95
    assert "appjwt_clock_skew_seconds{vault}" in read


def test_the_series_of_a_host_that_is_not_used_any_more_go() -> None:
    scraped = Scraped()
    for number in range(200):
        scraped.metrics.observe_sentinel_request(f"host-{number}", 200, 0.1, None)
        scraped.metrics.observe_sentinel_request(f"host-{number}", None, 0.1, None)
        scraped.metrics.retain_hosts({"host-7", f"host-{number}", "another"})
    series = [each for each in scraped.read() if "sentinel_request" in each and "{" in each]
    assert {each.partition("{")[2].rstrip("}").partition(",")[0] for each in series} == {"host-7", "host-199"}


@pytest.mark.tool("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    scraped = Scraped(AccountRecord("le1", State.FAILING, tracked=tracked(9.0), last_success=1.0))
    scraped.metrics.report(Outcome("a", Result.FAILED, 0.1, reason=Reason.DUE), transition(0.1))
    scraped.metrics.observe_sentinel_request("va", 200, 0.1, Clock().now())
    scraped.metrics.observe_vault_request("login", 200, 0.1)
    checked = subprocess.run(
        [str(shutil.which("promtool")), "check", "metrics"],
        input=scraped.metrics.text(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
