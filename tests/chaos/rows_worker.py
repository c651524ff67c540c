"""The worker itself is killed, stopped, starved, doubled, and its clock is shifted."""

import itertools
import json
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sandbox.faults import Fault as Misbehaviour
from sandbox.faults import Service
from tests.chaos.engine import Fault, Row
from tests.chaos.gate import Moment
from tests.chaos.stand import Line, Stand, clocked, clocked_and_restarted, crowded, gated, restarted, shipped
from tests.integration.processes import PIPE, eventually

_GROUP = "Worker"
_MANY = 12
_A_LITTLE = 4 << 20
"""Bytes; a thread takes 8 MiB. With none at all Python itself falls silent."""
_NO_FILES = r"127\.0\.0\.1:\d+: (too many open files|connection lost|the answer is broken)"
_numbers = itertools.count()


# Killed between mint and write


def killed_at(what: str, moment: Moment) -> Fault:
    """Kill the daemon at a request of a new account to Vault; `{}` in it is replaced by the account's name."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        name = f"new-{next(_numbers)}"
        held = stand.way.hold(what.format(name) + "$", moment)
        stand.add_account(name)
        assert held.caught.wait(60)
        stand.kill()
        held.drop()
        stand.bites = 1
        stand.start()
        yield

    return fault


def killed_while(service: Service, misbehaviour: Misbehaviour) -> Fault:
    """Kill the daemon while a service of LivePerson has the request of a new account."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        name = f"new-{next(_numbers)}"
        liveperson = stand.scene.liveperson
        with liveperson.faults.on(misbehaviour, account=name, service=service):
            stand.add_account(name)
            eventually(lambda: any((each.service, each.account_id) == (service, name) for each in liveperson.seen), 60)
            stand.kill()
        stand.bites = 1
        stand.start()
        yield

    return fault


@contextmanager
def killed_again_and_again(stand: Stand) -> Iterator[None]:
    """Kill the daemon at 50 random moments, half of them after it was ready."""
    chance = random.Random(1)
    for number in range(50):
        if number % 2:
            stand.daemon.wait_for("worker.ready")
        time.sleep(chance.uniform(0.1, 2))
        stand.kill()
        stand.start()
    stand.bites = 50
    yield


_HANG = Misbehaviour(hang=True)
_ON_ITS_WAY = Misbehaviour(drip=5, drip_from="headers")
_STEPS: dict[str, tuple[str, str]] = {
    "the stored token": ("GET", "data/liveperson/tokens/{}"),
    "the credentials": ("GET", "data/liveperson/accounts/{}"),
    "the path's metadata": ("PATCH", "metadata/liveperson/tokens/{}"),
    "the token": ("POST", "data/liveperson/tokens/{}"),
}
_SERVICES: list[tuple[str, Service, Misbehaviour]] = [
    ("before the Domain API answers", "domain", _HANG),
    ("before Sentinel mints", "sentinel", _HANG),
    ("when Sentinel has minted", "sentinel", _ON_ITS_WAY),
]


# Stopped


@contextmanager
def terminated_amid_a_write(stand: Stand) -> Iterator[None]:
    held = stand.way.hold("POST /v1/secret/data/liveperson/tokens/", "before")
    assert held.caught.wait(stand.life)
    stand.daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    held.release()
    assert stand.daemon.process.wait(20) == 0
    assert stand.daemon.events("worker.stopped")
    stand.bites = 1
    stand.start()
    yield


@contextmanager
def suspended(stand: Stand) -> Iterator[None]:
    stand.daemon.process.send_signal(signal.SIGSTOP)
    stand.bites = 1
    yield
    stand.daemon.process.send_signal(signal.SIGCONT)


@contextmanager
def one_of_two_suspended(stand: Stand) -> Iterator[None]:
    """Suspend one of two daemons until its sister has replaced all that it remembers."""
    sleeper = stand.daemon
    stand.start().wait_for("worker.ready")
    sleeper.process.send_signal(signal.SIGSTOP)
    yield
    slept = len(sleeper.events())
    sleeper.process.send_signal(signal.SIGCONT)
    eventually(lambda: any(line["event"].startswith("token.") for line in sleeper.events()[slept:]))
    stand.bites = 1
    sleeper.stop()


@contextmanager
def raced(stand: Stand) -> Iterator[None]:
    """Run a second daemon, and three operators who refresh everything again and again; one of all wins each write."""
    sister = stand.daemon
    stand.start().wait_for("worker.ready")
    before, ends = len(stand.way.passed), time.monotonic() + stand.life
    while time.monotonic() < ends:
        for done in stand.run_concurrently(3, "--refresh-all"):
            assert done.status == 0, done.err
    lost = [each for each in stand.way.passed[before:] if "POST" in each.what and each.status == 400]
    stand.bites = len(lost)
    yield
    sister.stop()


# Unread


@contextmanager
def log_unread(stand: Stand) -> Iterator[None]:
    """Suspend the log shipper, then resume it: the pipe between them is full meanwhile."""
    assert stand.shipper
    daemon, began = stand.daemon, len(stand.daemon.events())
    stand.shipper.send_signal(signal.SIGSTOP)
    yield
    over = datetime.now(UTC)
    stand.shipper.send_signal(signal.SIGCONT)
    eventually(lambda: _moment(daemon.events()[-1]) > over)
    waited = [line for line in daemon.events()[began:] if _moment(line) < over]
    written = itertools.accumulate(len(json.dumps(line, separators=(",", ":"))) for line in waited)
    stand.bites = sum(end > PIPE for end in written)


def _moment(line: Line) -> datetime:
    return datetime.fromisoformat(line["timestamp"])


# Starved


@contextmanager
def no_more_files(stand: Stand) -> Iterator[None]:
    """Limit the open files, and cut the connections to Vault so that the daemon needs new ones."""
    with _limit(stand, resource.RLIMIT_NOFILE, 3):
        stand.way.cuts = True
        time.sleep(0.5)
        stand.way.cuts = False
        yield


@contextmanager
def no_more_memory(stand: Stand) -> Iterator[None]:
    """Limit the memory, and add more accounts than it has room for threads to read them."""
    process = Path(f"/proc/{stand.daemon.process.pid}")
    pages = int((process / "statm").read_text().split()[0])
    threads = len(list((process / "task").iterdir()))
    with _limit(stand, resource.RLIMIT_AS, pages * resource.getpagesize() + _A_LITTLE):
        for number in range(_MANY):
            stand.add_account(f"many-{number}")
        yield
        grown = len(list((process / "task").iterdir())) - threads
    stand.bites = max(0, _MANY - grown)
    eventually(lambda: len(stand.watch.newest) >= _MANY)


@contextmanager
def _limit(stand: Stand, which: int, limit: int) -> Iterator[None]:
    pid = stand.daemon.process.pid
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (limit, before[1]))
    yield
    resource.prlimit(pid, which, before)


# The wall clock


def shifted(by: str) -> Fault:
    """Shift the clock while the daemon runs."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        clock = stand.scene.folder / "clock"
        clock.write_text(by)
        yield
        clock.write_text("+0d")

    return fault


def started_shifted(by: str) -> Fault:
    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        stand.kill()
        (stand.scene.folder / "clock").write_text(by)
        shown = stand.start().wait_for("worker.ready")["timestamp"]
        off = abs((datetime.fromisoformat(shown) - datetime.now(UTC)).total_seconds())
        stand.bites = int(off > 7000)
        yield
        (stand.scene.folder / "clock").write_text("+0d")

    return fault


_SHIFTS = ("-1d", "-2h", "+2h", "+1d")
_TOOL = "faketime"

ROWS = [
    *(
        Row(
            _GROUP,
            f"killed {moment} {'reading' if method == 'GET' else 'writing'} {thing}",
            restarted,
            killed_at(f"{method} /v1/secret/{path}", moment),
            duration=0,
            at_once=True,
            goes_on=False,
            short=(thing, moment) == ("the token", "after"),
        )
        for thing, (method, path) in _STEPS.items()
        for moment in ("before", "after")
    ),
    *(
        Row(_GROUP, f"killed {name}", restarted, killed_while(service, how), duration=0, at_once=True, goes_on=False)
        for name, service, how in _SERVICES
    ),
    Row(_GROUP, "killed at 50 moments", restarted, killed_again_and_again, duration=0),
    Row(_GROUP, "SIGTERM amid a write", restarted, terminated_amid_a_write, duration=0, goes_on=False),
    Row(_GROUP, "its log unread", shipped, log_unread, duration=0.7),
    Row(_GROUP, "suspended for longer than a life", gated, suspended, duration=1.3, outlives=True),
    Row(_GROUP, "one of two suspended so long", gated, one_of_two_suspended, duration=1.3),
    Row(_GROUP, "two daemons and three operators", crowded, raced, duration=0),
    Row(_GROUP, "files at their limit", gated, no_more_files, _NO_FILES, outages=(1, 8)),
    Row(_GROUP, "memory at its limit", crowded, no_more_memory, "no thread can be started", outages=(0, 8)),
    *(
        Row(_GROUP, f"clock {by} while it runs", clocked, shifted(by), sign="clock.skewed", tool=_TOOL)
        for by in _SHIFTS
    ),
    *(
        Row(
            _GROUP,
            f"clock {by} at its start",
            clocked_and_restarted,
            started_shifted(by),
            duration=0.1,
            at_once=True,
            goes_on=False,
            tool=_TOOL,
        )
        for by in _SHIFTS
    ),
]
