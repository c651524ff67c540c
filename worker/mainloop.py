"""The daemon's main loop: a pass each second until a stop request, then an orderly end."""

import contextlib
from collections.abc import Callable
from importlib.metadata import version
from queue import Empty
from typing import Final, Protocol

import structlog

from worker import process
from worker.daemon import TICK, Daemon
from worker.schedule.dispatch import Pool
from worker.schedule.timer import SteadyScheduler

_SHUTDOWN_GRACE: Final = 14.0
"""Seconds that running attempts have to end after SIGTERM; 3 more revoke the login, 1 flushes the log: under 20."""

log = structlog.get_logger()


class Http(Protocol):
    address: str

    def start(self) -> None: ...


def run(
    daemon: Daemon,
    timer: SteadyScheduler,
    pool: Pool,
    http: Http | None,
    log_out: Callable[[], None],
    cleanup: Callable[[], None],
) -> bool:
    """Run until SIGTERM, SIGINT or SIGQUIT, once timer and http have started.

    Return False if a thread did not end in time.

    :param cleanup: drops connections, and what is known of hosts, that are not needed; called each second.
    """
    stop_requests = process.stop_requests(exit_at_second=False)
    log.info("worker.started", version=version("appjwt-worker"), http=http.address if http else None)
    daemon.start()
    while True:
        with contextlib.suppress(Empty):
            stop_requests.get(timeout=TICK)
            break
        daemon.tick()
        cleanup()
    log.info("worker.stopping")
    daemon.stop()
    timer.stop()
    pool.shutdown(wait=False, cancel_futures=True)
    ended = pool.join(_SHUTDOWN_GRACE)
    log_out()
    log.info("worker.stopped")
    return ended
