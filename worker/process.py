"""The process itself: its streams, its signals, and the threads and descriptors without which it cannot start."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from io import TextIOWrapper
from queue import SimpleQueue
from typing import Final, NoReturn, TextIO

from worker.core.redact import redacted

INTERRUPTED: Final = 130
"""The exit status that a shell gives to Ctrl-C."""

_STDOUT, _STDERR = 1, 2
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_OTHER_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MIN_THREADS: Final = 16
"""Threads that the daemon needs at its start, with a few to spare."""
_MIN_DESCRIPTORS: Final = 32
_RETRY_PAUSE: Final = 2
"""Seconds until the next try of a start without enough of them."""


# Streams


def open_streams() -> None:
    """Open /dev/null where the caller closed stdin, stdout or stderr, or a connection would get that descriptor."""
    with contextlib.suppress(OSError):  # no descriptor is left, so none of these three is free
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(_STDOUT, "w")
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks is still readable


def print_report(text: str) -> None:
    """Print a report on stdout. Where that cannot be written, what was done is done all the same."""
    error = _write(f"{text}\n", sys.stdout)
    if error and not isinstance(error, BrokenPipeError):
        print_error(f"cannot write to stdout: {(error.strerror or 'unknown').lower()}")


def print_error(text: str) -> None:
    """Print each line of the text on stderr, with our name before it; if there is no reader, drop it after a second."""
    with contextlib.suppress(ValueError):  # a stream without a descriptor is never full
        if not select.select([], [sys.stderr], [], 1)[1]:
            return
    _write("".join(f"appjwt-worker: {redacted(line)}\n" for line in text.splitlines()), sys.stderr)


def flush_streams() -> None:
    """Write what is left, so that the interpreter does not fail to do so when it exits."""
    for stream in (sys.stdout, sys.stderr):
        _write("", stream)


def _write(text: str, stream: TextIO) -> OSError | None:
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what waits in its buffer
        return error
    return None


# Signals


def exit_on_signals(status: int, *, ignore_others: bool) -> None:
    """Exit at once on a stop signal: nothing has to be finished first.

    :param ignore_others: ignore SIGHUP, SIGUSR1 and SIGUSR2; else they are stop signals, too.
    """
    for each in _STOP_SIGNALS if ignore_others else _stop_signals():
        signal.signal(each, lambda *_: os._exit(status))
    for each in _OTHER_SIGNALS if ignore_others else ():
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # restart blocks them


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on the first stop signal, exit at once on the second."""
    for each in _stop_signals():
        signal.signal(each, _interrupt)


def stop_requests(*, exit_at_second: bool) -> "SimpleQueue[int]":
    """Return a queue that receives the stop signals.

    An Event would not do: a handler that sets one while the main thread is inside its `wait` may need the lock that
    `wait` holds, and never return.

    :param exit_at_second: exit at once then, as a manual mode does, which SIGHUP, SIGUSR1 and SIGUSR2 stop as well.
        Where the first one has interrupted it already, the next one is the second.
    """
    requests: SimpleQueue[int] = SimpleQueue()

    def request(number: int, _: object) -> None:
        requests.put(number)
        if exit_at_second:
            exit_on_signals(INTERRUPTED, ignore_others=False)

    for each in _stop_signals() if exit_at_second else _STOP_SIGNALS:
        if not exit_at_second or signal.getsignal(each) is _interrupt:
            signal.signal(each, request)
    return requests


def _interrupt(*_: object) -> None:
    exit_on_signals(INTERRUPTED, ignore_others=False)
    raise KeyboardInterrupt


def _stop_signals() -> list[signal.Signals]:
    """Return the stop signals of a manual mode, without a SIGHUP that nohup has made it ignore."""
    return [*_STOP_SIGNALS, *(each for each in _OTHER_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN)]


# The start


def require_resources() -> None:
    """Raise RuntimeError or OSError unless the threads and descriptors of a start can be had."""
    release = threading.Event()
    descriptors: list[int] = []
    threads = [threading.Thread(target=release.wait) for _ in range(_MIN_THREADS)]
    try:
        for each in threads:
            each.start()
        descriptors += (os.open(os.devnull, os.O_RDONLY) for _ in range(_MIN_DESCRIPTORS))
    finally:
        release.set()
        for descriptor in descriptors:
            os.close(descriptor)
        for each in threads:
            if each.ident:
                each.join()


def restart(error: Exception) -> NoReturn:
    """Wait a moment, and replace this process, of which a part may have started, by a new one."""
    print_error(f"too few threads or descriptors to start: {error}; trying again in {_RETRY_PAUSE} s")
    time.sleep(_RETRY_PAUSE)
    # none is lost, and none kills, before the new one has handlers
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the command that was started, with no shell between
