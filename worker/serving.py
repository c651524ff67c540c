"""Builds what only the daemon has, and joins it: its timer, metrics, page and HTTP port."""

from collections.abc import Callable
from datetime import datetime, timedelta
from importlib.metadata import version

from worker.core.outcome import Outcome, Transition
from worker.core.redact import redacted
from worker.daemon import Daemon
from worker.ops import metrics, page
from worker.ops.http import HttpServer, View
from worker.ops.metrics import Metrics
from worker.ops.page import Page
from worker.schedule.boottime import boottime
from worker.schedule.timer import SteadyScheduler
from worker.settings import HttpSettings, Settings, SettingsError, variable
from worker.wiring import Components


def build(
    settings: Settings, components: Components
) -> tuple[Daemon, SteadyScheduler, HttpServer | None, Callable[[], None]]:
    """Return the daemon, its timer and HTTP port, and what is to be called each second to drop what is not needed.

    SettingsError if `http.listen` cannot be bound.
    """

    def cleanup() -> None:
        components.close_idle()
        hosts = components.connected_hosts() | {record.host for record in daemon.records() if record.host}
        components.source.retain_hosts(hosts)
        collector.retain_hosts(hosts)

    def report(outcome: Outcome, transition: Transition) -> None:
        collector.report(outcome, transition)
        outage.record_attempt(outcome, len(components.scheduler))
        components.events.report(outcome, transition)

    def now() -> datetime:
        return components.session.now() + timedelta(seconds=clocks.skew)

    clocks = components.source.clocks
    outage = components.session.outage
    timer = SteadyScheduler()
    daemon = Daemon(
        accounts=components.accounts,
        refresher=components.refresher,
        scheduler=components.scheduler,
        timer=timer,
        pool=components.pool,
        clock=boottime,
        keep_login_alive=components.session.login.keep_alive,
        report=report,
        sync_interval=settings.accounts.sync_interval.total_seconds(),
        resync_interval=settings.tokens.resync_interval.total_seconds(),
    )
    daemon.throttled_until = lambda: components.session.throttled_until
    collector = Metrics(
        version=version("appjwt-worker"),
        records=daemon.records,
        clock=boottime,
        now=now,
        vault_now=components.session.now,
        vault_error=lambda: outage.error,
        login_expiry=lambda: components.session.login.expiry,
        synced_at=lambda: daemon.synced_at,
    )
    daemon.on_list = outage.record_list
    components.session.on_request = collector.observe_vault_request
    components.session.on_clock_jump = lambda jump, paused: daemon.on_clock_jump(jump, paused=paused)
    clocks.on_skew = daemon.on_vault_skewed
    components.sentinel.on_request = collector.observe_sentinel_request
    status_page = Page(
        version=version("appjwt-worker"),
        records=daemon.records,
        clock=boottime,
        now=now,
        synced_at=lambda: daemon.synced_at,
        vault_error=lambda: outage.error,
        skew=lambda: clocks.skew,
    )
    views = {
        "/": View("text/html; charset=utf-8", status_page.html, page.STYLE_HASH),
        "/status.json": View("application/json", lambda _: status_page.json()),
        "/metrics": View(metrics.CONTENT_TYPE, lambda _: collector.text()),
    }

    def is_ready() -> str | None:
        if daemon.ready.is_set():
            return None
        error = outage.error
        cause = f"Vault cannot be used: {redacted(error)}" if error else "the stored tokens were not read yet"
        return f"not ready: {cause}"

    return daemon, timer, _http_server(settings.http, lambda: daemon.stall_reason, is_ready, views), cleanup


def _http_server(
    http: HttpSettings,
    is_alive: Callable[[], str | None],
    is_ready: Callable[[], str | None],
    views: dict[str, View],
) -> HttpServer | None:
    if http.address is None:
        return None
    try:
        return HttpServer(*http.address, is_alive=is_alive, is_ready=is_ready, views=views)
    except OSError as error:
        raise SettingsError(f"http.listen ({variable('http.listen')}): {error.strerror}") from None
