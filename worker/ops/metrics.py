"""The metrics, for Prometheus: what happens is counted as it happens, how the accounts stand is read at each scrape.

A child of a metric for each account would cost more memory than all that is known of the account.
"""

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.core.entry import Entry
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Held, Reason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHARES = tuple(each / 20 for each in range(1, 20))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LAGS = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)
_NO_ANSWER = "none"


class Metrics(Collector):
    def __init__(
        self,
        *,
        version: str,
        entries: Callable[[], list[Entry]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
        login_ends: Callable[[], float | None],
        synced_at: Callable[[], float | None],
    ) -> None:
        """
        :param entries: all accounts, as the fleet knows them.
        :param now: what the time is by Vault's clock, which counts for the tokens; the local one may be wrong.
        """
        self._entries = entries
        self._clock = clock
        self._now = now
        self._login_ends = login_ends
        self._synced_at = synced_at
        disable_created_metrics()  # type: ignore[no-untyped-call] # it is the library's
        self._registry = registry = CollectorRegistry()
        Gauge("appjwt_build_info", "The version that runs.", ["version"], registry=registry).labels(version).set(1)
        self._refreshes = Counter(
            "appjwt_refreshes", "Attempts, by what became of them and why.", ["outcome", "reason"], registry=registry
        )
        for reason in Reason:  # a series that begins with 1 has not risen, for Prometheus
            for result in (Result.REFRESHED, Result.UNCHANGED, Result.FAILED):
                self._refreshes.labels(result, reason)
        self._duration = Histogram(
            "appjwt_refresh_duration_seconds",
            "From an attempt's first read to its last write.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._lag = Histogram(
            "appjwt_schedule_lag_seconds",
            "From the moment an account was due until its attempt began.",
            buckets=_LAGS,
            registry=registry,
        )
        self._left = Histogram(
            "appjwt_life_left_at_replacement_ratio",
            "Share of its life that a token still had when it was replaced; without trouble at least 0.4.",
            buckets=_SHARES,
            registry=registry,
        )
        self._sentinel = Counter(
            "appjwt_sentinel_requests", "Token requests, by host and answer.", ["host", "status"], registry=registry
        )
        self._sentinel_duration = Histogram(
            "appjwt_sentinel_request_duration_seconds",
            "Token requests.",
            ["host"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._vault = Counter("appjwt_vault_requests", "Requests to Vault.", ["operation", "status"], registry=registry)
        self._vault_duration = Histogram(
            "appjwt_vault_request_duration_seconds",
            "Requests to Vault.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._skew = Gauge(
            "appjwt_clock_skew_seconds",
            "How far this machine's clock is ahead of another, to about a second.",
            ["against"],
            registry=registry,
        )
        registry.register(self)

    # What happens

    def report(self, outcome: Outcome, following: Next) -> None:
        """An attempt came to its end."""
        self._refreshes.labels(outcome.result, outcome.reason or "").inc()
        if outcome.result is Result.SKIPPED:
            return
        self._duration.observe(outcome.duration)
        if following.lag is not None:
            self._lag.observe(following.lag)
        if outcome.result is Result.REFRESHED and outcome.left_at_replacement is not None and outcome.token:
            self._left.observe(outcome.left_at_replacement / outcome.token.lifetime.total_seconds())

    def sentinel_asked(self, host: str, status: int | None, seconds: float, now: datetime | None) -> None:
        self._sentinel.labels(host, status or _NO_ANSWER).inc()
        self._sentinel_duration.labels(host).observe(seconds)
        if now:
            self._skew.labels("sentinel").set(time.time() - now.timestamp())

    def vault_asked(self, operation: str, status: int | None, seconds: float) -> None:
        self._vault.labels(operation, status or _NO_ANSWER).inc()
        self._vault_duration.labels(operation).observe(seconds)

    # A scrape

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self._skew.labels("vault").set(time.time() - self._now().timestamp())
        entries = self._entries()
        epoch = self._now().timestamp() - self._clock()
        return generate_latest(self._registry) + "".join(_by_account(entries, epoch)).encode()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that no scrape is made to learn the names."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        entries, steady = self._entries(), self._clock()
        now = self._now().timestamp()
        epoch = now - steady
        yield _states(entries)
        lives = [_life_left(each, steady) for each in entries if _wants_token(each)]
        if lives:
            yield GaugeMetricFamily(
                "appjwt_min_life_left_seconds",
                "Life left of the token that ends first.",
                min(left for left, _ in lives),
            )
            yield GaugeMetricFamily(
                "appjwt_min_life_left_ratio",
                "Least share of its life that any token has left.",
                min(share for _, share in lives),
            )
        ends, synced = self._login_ends(), self._synced_at()
        if ends is not None and ends != float("inf"):
            yield GaugeMetricFamily(
                "appjwt_vault_login_expiry_timestamp_seconds", "When the login to Vault ends.", epoch + ends
            )
        if synced is not None:
            yield GaugeMetricFamily(
                "appjwt_last_sync_timestamp_seconds",
                "When the accounts were last compared with Vault's.",
                epoch + synced,
            )


_MOMENTS: tuple[tuple[str, str, Callable[[Held], float]], ...] = (
    ("appjwt_token_issued_timestamp_seconds", "When the token in Vault was issued.", lambda held: held.life.begins),
    ("appjwt_token_refresh_timestamp_seconds", "When it is planned to be replaced.", lambda held: held.refresh_at),
    ("appjwt_token_expiry_timestamp_seconds", "When it ends.", lambda held: held.life.ends),
)


def _by_account(entries: list[Entry], epoch: float) -> Iterator[str]:
    """As text: the library takes ten times as long, and ten thousand accounts are fifty thousand lines.

    :param epoch: what the steady clock's zero is in Unix time.
    """
    named = [(entry, f'{{account="{_escaped(entry.name)}"}}') for entry in entries]
    living = [(entry.held, labels) for entry, labels in named if entry.held and _wants_token(entry)]
    for name, meaning, moment in _MOMENTS:
        yield _head(name, meaning)
        yield from (f"{name}{labels} {epoch + moment(held):.3f}\n" for held, labels in living)
    name = "appjwt_last_success_timestamp_seconds"
    yield _head(name, "When an attempt last went well: renewed, or found renewed by another.")
    for entry, labels in named:
        if entry.last_success is not None:
            yield f"{name}{labels} {epoch + entry.last_success:.3f}\n"
    name = "appjwt_consecutive_failures"
    yield _head(name, "Failed attempts in a row.")
    yield from (f"{name}{labels} {entry.failures}\n" for entry, labels in named)
    name = "appjwt_account_state"
    yield _head(name, "1 for each account that is not ok.")
    for entry, labels in named:
        if entry.state is not State.OK:
            yield f'{name}{labels[:-1]},state="{entry.state}"}} 1\n'


def _head(name: str, meaning: str) -> str:
    return f"# HELP {name} {meaning}\n# TYPE {name} gauge\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _states(entries: list[Entry]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("appjwt_accounts", "Accounts, by state.", labels=["state"])
    counts = Count(entry.state for entry in entries)
    for state in State:
        family.add_metric([state], counts[state])
    return family


def _wants_token(entry: Entry) -> bool:
    """Whether readers wait for its token; one that was never seen yet is not missed."""
    return (entry.held is not None and entry.state in (State.OK, State.FAILING, State.INVALID)) or (
        entry.state is State.FAILING
    )


def _life_left(entry: Entry, now: float) -> tuple[float, float]:
    """Seconds, and share of the whole life."""
    return (entry.held.life.left(now), entry.held.life.share_left(now)) if entry.held else (0.0, 0.0)
