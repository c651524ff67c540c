"""The metrics, for Prometheus: what happens is counted as it happens, how the accounts stand is read at each scrape.

A child of a metric for each account would cost more memory than all that is known of the account.
"""

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.core.errors import Kind, Stage
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason, TrackedToken
from worker.core.record import AccountRecord
from worker.core.status import rate_record
from worker.ops.logs import QUEUE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FRACTIONS = tuple(each / 20 for each in range(1, 20))
_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LAG_BUCKETS = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)
_NO_ANSWER = "none"


class Metrics(Collector):
    def __init__(
        self,
        *,
        version: str,
        records: Callable[[], list[AccountRecord]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
        vault_now: Callable[[], datetime],
        vault_error: Callable[[], str | None],
        login_expiry: Callable[[], float],
        synced_at: Callable[[], float | None],
    ) -> None:
        """
        :param records: returns all accounts.
        :param now: the time by the clock that counts for the tokens; the local one may be wrong.
        :param vault_error: returns why Vault cannot be used, or None.
        :param synced_at: when the accounts were last compared with Vault's; until then the process's start is exported.
        """
        self._records = records
        self._clock = clock
        self._started_at = clock()
        self._now = now
        self._vault_now = vault_now
        self._vault_error = vault_error
        self._login_expiry = login_expiry
        self._synced_at = synced_at
        disable_created_metrics()  # type: ignore[no-untyped-call] # it is the library's
        self._registry = registry = CollectorRegistry()
        Gauge("appjwt_build_info", "Version of the running worker.", ["version"], registry=registry).labels(
            version
        ).set(1)
        self._refreshes = Counter(
            "appjwt_refreshes", "Refresh attempts, by outcome and reason.", ["outcome", "reason"], registry=registry
        )
        for reason in Reason:  # a series that begins with 1 has not risen, for Prometheus
            for result in (Result.REFRESHED, Result.UNCHANGED, Result.FAILED):
                self._refreshes.labels(result, reason)
        self._failures = Counter(
            "appjwt_refresh_failures",
            "Failed refresh attempts, by stage and kind.",
            ["stage", "kind"],
            registry=registry,
        )
        for stage, kind in product(Stage, Kind):
            self._failures.labels(stage, kind)
        self._duration = Histogram(
            "appjwt_refresh_duration_seconds",
            "Seconds from an attempt's first read to its last write.",
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._lag = Histogram(
            "appjwt_schedule_lag_seconds",
            "Seconds from an account's due time to the start of its attempt.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self._remaining_at_refresh = Histogram(
            "appjwt_remaining_at_refresh_ratio",
            "Remaining share of a token's lifetime when it was replaced; at least 0.4 without failures.",
            buckets=_FRACTIONS,
            registry=registry,
        )
        self._sentinel = Counter(
            "appjwt_sentinel_requests",
            "Token requests to Sentinel, by host and HTTP status.",
            ["host", "status"],
            registry=registry,
        )
        self._sentinel_duration = Histogram(
            "appjwt_sentinel_request_duration_seconds",
            "Seconds that token requests to Sentinel took, by host.",
            ["host"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._vault = Counter(
            "appjwt_vault_requests",
            "Requests to Vault, by operation and HTTP status.",
            ["operation", "status"],
            registry=registry,
        )
        self._vault_duration = Histogram(
            "appjwt_vault_request_duration_seconds",
            "Seconds that requests to Vault took, by operation.",
            ["operation"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._statuses: dict[str, set[str]] = {}
        """By Sentinel host, those that have a series."""
        self._skew = Gauge(
            "appjwt_clock_skew_seconds",
            "Seconds by which the local clock is ahead of another one, to about a second.",
            ["against"],
            registry=registry,
        )
        registry.register(self)
        ProcessCollector(registry=registry)

    # What happens

    def report(self, outcome: Outcome, transition: Transition) -> None:
        """An attempt came to its end."""
        self._refreshes.labels(outcome.result.public, outcome.reason or "").inc()
        if outcome.result.public == "skipped":
            return
        if outcome.error:
            self._failures.labels(outcome.error.stage, transition.kind).inc()
        self._duration.observe(outcome.duration)
        if transition.lag is not None:
            self._lag.observe(transition.lag)
        if outcome.result is Result.REFRESHED and outcome.remaining_at_refresh is not None and outcome.token:
            self._remaining_at_refresh.observe(outcome.remaining_at_refresh / outcome.token.lifetime.total_seconds())

    def observe_sentinel_request(self, host: str, status: int | None, seconds: float, now: datetime | None) -> None:
        self._sentinel.labels(host, status or _NO_ANSWER).inc()
        self._sentinel_duration.labels(host).observe(seconds)
        self._statuses.setdefault(host, set()).add(str(status or _NO_ANSWER))
        if now:
            self._skew.labels("sentinel").set(time.time() - now.timestamp())

    def retain_hosts(self, hosts: set[str]) -> None:
        """Remove the series of all other Sentinel hosts."""
        for host in self._statuses.keys() - hosts:
            for status in tuple(self._statuses.pop(host)):
                self._sentinel.remove(host, status)
            self._sentinel_duration.remove(host)

    def observe_vault_request(self, operation: str, status: int | None, seconds: float) -> None:
        self._vault.labels(operation, status or _NO_ANSWER).inc()
        self._vault_duration.labels(operation).observe(seconds)

    # A scrape

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self._skew.labels("vault").set(time.time() - self._vault_now().timestamp())
        records = self._records()
        steady = self._clock()
        epoch = self._now().timestamp() - steady
        return generate_latest(self._registry) + "".join(_account_series(records, steady, epoch)).encode()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that no scrape is made to learn the names."""
        return ()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        records, steady = self._records(), self._clock()
        now = self._now().timestamp()
        epoch = now - steady
        rated = [(record, *rate_record(record, steady)) for record in records]
        yield _states(state for _, state, _ in rated)
        yield CounterMetricFamily(
            "appjwt_log_lines_dropped",
            "Log lines dropped because nobody read the log or the disk was full.",
            QUEUE.dropped,
        )
        needing_token = [(record.tracked, margin) for record, _, margin in rated if margin is not None]
        if needing_token:
            yield GaugeMetricFamily(
                "appjwt_min_remaining_seconds",
                "Remaining lifetime of the token that expires first.",
                min(tracked.validity.remaining(steady) if tracked else 0.0 for tracked, _ in needing_token),
            )
            yield GaugeMetricFamily(
                "appjwt_min_remaining_ratio",
                "Smallest remaining share of a token's lifetime.",
                min(tracked.validity.remaining_fraction(steady) if tracked else 0.0 for tracked, _ in needing_token),
            )
            yield GaugeMetricFamily(
                "appjwt_min_margin_ratio",
                "Smallest margin of a token: 1 at its planned refresh, 0 at its expiry.",
                min(margin for _, margin in needing_token),
            )
        yield GaugeMetricFamily(
            "appjwt_vault_usable", "1 if Vault can be used, 0 if not.", 0 if self._vault_error() else 1
        )
        expiry, synced = self._login_expiry(), self._synced_at()
        if expiry != float("inf"):
            yield GaugeMetricFamily(
                "appjwt_vault_login_expiry_timestamp_seconds",
                "Expiry of the login to Vault as Unix time; the process's start until the first login.",
                epoch + expiry,
            )
        yield GaugeMetricFamily(
            "appjwt_last_sync_timestamp_seconds",
            "Latest comparison with Vault's list of accounts as Unix time; the process's start until there is one.",
            epoch + (self._started_at if synced is None else synced),
        )


_TIMESTAMPS: tuple[tuple[str, str, Callable[[TrackedToken], float]], ...] = (
    (
        "appjwt_token_issued_timestamp_seconds",
        "Issue of the stored token as Unix time.",
        lambda tracked: tracked.validity.start,
    ),
    (
        "appjwt_token_refresh_timestamp_seconds",
        "Planned refresh of the stored token as Unix time.",
        lambda tracked: tracked.planned_at,
    ),
    (
        "appjwt_token_expiry_timestamp_seconds",
        "Expiry of the stored token as Unix time.",
        lambda tracked: tracked.validity.end,
    ),
)


def _account_series(records: list[AccountRecord], steady: float, epoch: float) -> Iterator[str]:
    """As text: the library takes ten times as long, and ten thousand accounts are fifty thousand lines.

    :param epoch: what the steady clock's zero is in Unix time.
    """
    named = [(record, f'{{account="{_escape(record.name)}"}}') for record in records]
    with_token = [
        (record.tracked, labels)
        for record, labels in named
        if record.tracked and rate_record(record, steady)[1] is not None
    ]
    for name, meaning, moment in _TIMESTAMPS:
        yield _metric_header(name, meaning)
        yield from (f"{name}{labels} {epoch + moment(tracked):.3f}\n" for tracked, labels in with_token)
    name = "appjwt_last_success_timestamp_seconds"
    yield _metric_header(name, "Latest successful attempt as Unix time: refreshed, or found refreshed by another.")
    for record, labels in named:
        if record.last_success is not None:
            yield f"{name}{labels} {epoch + record.last_success:.3f}\n"
    name = "appjwt_consecutive_failures"
    yield _metric_header(name, "Consecutive failed attempts.")
    yield from (f"{name}{labels} {record.failures}\n" for record, labels in named)
    name = "appjwt_account_state"
    yield _metric_header(name, "1 for each account that is not ok.")
    for record, labels in named:
        state, _ = rate_record(record, steady)
        if state is not State.OK:
            yield f'{name}{labels[:-1]},state="{state}"}} 1\n'


def _metric_header(name: str, meaning: str) -> str:
    return f"# HELP {name} {meaning}\n# TYPE {name} gauge\n"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _states(states: Iterable[State]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("appjwt_accounts", "Accounts, by state.", labels=["state"])
    counts = Count(states)
    for state in State:
        family.add_metric([state], counts[state])
    return family
