"""Builds what only the daemon has, and joins it: its timer, metrics, page and HTTP port."""

from importlib.metadata import version

from worker.core.outcome import Next, Outcome
from worker.daemon import Daemon
from worker.ops import metrics, page
from worker.ops.http import HttpServer, View
from worker.ops.metrics import Metrics
from worker.ops.page import Page
from worker.schedule.clockwork import Clockwork
from worker.schedule.steady import steady
from worker.settings import HttpSettings, Settings, SettingsError, variable
from worker.wiring import Parts


def build(settings: Settings, parts: Parts) -> tuple[Daemon, Clockwork, HttpServer | None]:
    """SettingsError where http.listen cannot be had."""

    def report(outcome: Outcome, following: Next) -> None:
        counted.report(outcome, following)
        parts.events.report(outcome, following)

    clockwork = Clockwork(lambda name: daemon.ring(name))  # noqa: PLW0108 - the two need each other
    daemon = Daemon(
        accounts=parts.accounts,
        refresher=parts.refresher,
        fleet=parts.fleet,
        timer=clockwork,
        pool=parts.pool,
        clock=steady,
        keep_login_alive=parts.session.login.keep_alive,
        report=report,
        sync_every=settings.accounts.sync_every.total_seconds(),
        sweep_every=settings.tokens.sweep_every.total_seconds(),
    )
    counted = Metrics(
        version=version("appjwt-worker"),
        entries=daemon.entries,
        clock=steady,
        now=parts.session.now,
        login_ends=lambda: parts.session.login.ends,
        synced_at=lambda: daemon.synced_at,
    )
    parts.session.on_request = counted.vault_asked
    parts.sentinel.on_request = counted.sentinel_asked
    shown = Page(
        version=version("appjwt-worker"),
        entries=daemon.entries,
        clock=steady,
        now=parts.session.now,
        synced_at=lambda: daemon.synced_at,
        vault_trouble=lambda: parts.session.trouble,
    )
    views = {
        "/": View("text/html; charset=utf-8", shown.html, page.STYLE_HASH),
        "/status.json": View("application/json", lambda _: shown.json()),
        "/metrics": View(metrics.CONTENT_TYPE, lambda _: counted.text()),
    }
    return daemon, clockwork, _http_server(settings.http, daemon, clockwork, views)


def _http_server(http: HttpSettings, daemon: Daemon, clockwork: Clockwork, views: dict[str, View]) -> HttpServer | None:
    if http.address is None:
        return None
    try:
        return HttpServer(*http.address, is_alive=lambda: clockwork.turns, is_ready=daemon.ready.is_set, views=views)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise SettingsError(f"http.listen ({variable('http.listen')}): {http.listen} cannot be had: {reason}") from None
