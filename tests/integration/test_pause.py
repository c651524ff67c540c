"""A suspended process or machine, and clocks that jump or differ, on real processes: the installed daemon.

The steady clock is replaced in the daemon's process by one that a file shifts, the wall clock by libfaketime. The
scenarios mostly wait, so they run side by side.
"""

import asyncio
import re
import signal
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from sandbox.faults import Fault
from tests.integration.processes import Daemon, Reader, Scene, eventually, faketime, scene
from tests.integration.scenarios import Scenarios, Settled, begun, for_each
from tests.integration.servers import Server, request

EARLIEST, APART = 45, 2
ACCOUNTS = [f"le{number:08}" for number in range(12)]
"""By name; the last one's token expires first, after EARLIEST seconds, the others' APART seconds after one another:
Vault's Date has whole seconds."""
BY_EXPIRY = ACCOUNTS[::-1]
TOKEN_URL = "https://{}/sentinel/api/account/{}/app/token?v=1.0&grant_type=client_credentials"
WITHIN = 2.0
"""Seconds in which the first token is requested."""
DELAY = 1.5
"""Seconds that Sentinel takes for the first request, in which every token is read."""
STEADY = """
import pathlib, sys
from worker.schedule import boottime
real, shift = boottime.boottime, pathlib.Path(sys.argv.pop(1))
boottime.boottime = lambda: real() + float(shift.read_text())
from worker.cli import main
sys.exit(main())
"""


def store(world: Scene, account: str, exp: int) -> None:
    """Add an account whose token is stored already, and expires then."""
    credentials = world.add_account(account)
    with world.liveperson.faults.on(Fault(claims={"exp": exp}), account=account):
        answer = requests.post(
            TOKEN_URL.format(world.liveperson.hosts["va"], account),
            data=vars(credentials),
            verify=str(world.liveperson.ca_file),
            timeout=10,
        )
    data = {"access_token": answer.json()["access_token"], "managed_by": "appjwt-worker"}
    world.openbao.client.secrets.kv.v2.create_or_update_secret(f"liveperson/tokens/{account}", data)


class Shifted(Scene):
    """A scene whose daemons have a steady clock that its file `steady` shifts."""

    def command(self, *flags: str) -> list[str]:
        return [sys.executable, "-c", STEADY, str(self.folder / "steady"), *flags]


class Sleeper:
    """A daemon that knows the tokens of all accounts, and none of them is due."""

    def __init__(self, world: Shifted, *, sync: str, wall: bool = False) -> None:
        self.world = world
        self.steady, self.wall = world.folder / "steady", world.folder / "wall"
        self.steady.write_text("0")
        start = int(time.time())
        for number, account in enumerate(BY_EXPIRY):
            store(world, account, start + EARLIEST + APART * number)
        self.expired = start + EARLIEST + APART * len(ACCOUNTS)
        """The wall clock when no token lives any more."""
        self.daemon = world.daemon(
            {
                "APPJWT_ACCOUNTS_SYNC_INTERVAL": sync,
                "APPJWT_TOKENS_RESYNC_INTERVAL": "1h",
                "APPJWT_REFRESH_AT": "0.9",
                "APPJWT_REFRESH_JITTER": "0",
                "APPJWT_SENTINEL_MAX_IN_FLIGHT": "1",
                **(faketime(self.wall) if wall else {}),
            }
        )
        self.daemon.wait_for("worker.ready")
        assert self.daemon.events("token.refreshed") == []
        self.before = len(world.liveperson.seen)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.daemon.process.send_signal(signal.SIGSTOP)
        yield
        self.daemon.process.send_signal(signal.SIGCONT)

    def sleep(self) -> float:
        """Wait until no token lives any more; the seconds that it took."""
        began = time.monotonic()
        time.sleep(self.expired - time.time())
        return time.monotonic() - began

    def requested(self) -> list[str]:
        """Return the accounts whose tokens were requested since, in order."""
        seen = self.world.liveperson.seen[self.before :]
        return [each.account_id for each in seen if each.service == "sentinel"]

    def first_request(self, within: float) -> float:
        """Return the wall clock at the first request for a token."""
        eventually(self.requested, within)
        return time.time()

    def all_requested(self) -> list[str]:
        self.daemon.wait_for("token.refreshed", count=len(ACCOUNTS))
        return self.requested()


def a_process_stopped_for_a_lifetime_refreshes_all_at_once_and_earliest_expiry_first(
    folder: Path, settled: Settled
) -> None:
    with Shifted(folder, vault_tls=False) as world:
        sleeper = Sleeper(world, sync="1h")
        settled()
        with sleeper.stopped():
            slept = sleeper.sleep()
        sleeper.first_request(WITHIN)
        assert sleeper.all_requested() == BY_EXPIRY
        (paused,) = sleeper.daemon.events("worker.paused")
        assert abs(paused["duration"] - slept) < 2
        assert sleeper.daemon.events("clock.skewed") == []
        sleeper.daemon.stop()


def after_a_pause_in_which_the_steady_clock_stood_still_every_token_is_read_again(
    folder: Path, settled: Settled
) -> None:
    with Shifted(folder, vault_tls=False) as world:
        sleeper = Sleeper(world, sync="1h")
        settled()
        slept, took = pause(sleeper)
        paused = sleeper.daemon.wait_for("worker.paused")
        assert took < WITHIN
        all_are_read_again(sleeper)
        assert abs(paused["duration"] - slept) < 2
        (skewed,) = sleeper.daemon.events("clock.skewed")
        assert skewed["against"] == "boottime"
        sleeper.daemon.stop()


def after_a_pause_in_which_both_clocks_stood_still_every_token_is_read_again(folder: Path, settled: Settled) -> None:
    """Nothing on this machine shows it: the next sync does. With libfaketime each look at a clock reads a file."""
    with Shifted(folder, vault_tls=False) as world:
        sleeper = Sleeper(world, sync="3s", wall=True)
        settled()
        slept, _ = pause(sleeper, wall=True)
        skewed = sleeper.daemon.wait_for("clock.skewed")
        all_are_read_again(sleeper)
        assert (skewed["against"], abs(skewed["skew"] + slept) < 2) == ("vault", True)
        assert sleeper.daemon.events("worker.paused") == []
        sleeper.daemon.stop()


def pause(sleeper: Sleeper, *, wall: bool = False) -> tuple[float, float]:
    """Stop the daemon and its clocks for a lifetime; return the seconds of that, and until the first request then."""
    sleeper.world.liveperson.faults.set(Fault(delay=DELAY), times=1)
    with sleeper.stopped():
        slept = sleeper.sleep()
        sleeper.steady.write_text(str(-slept))
        if wall:
            sleeper.wall.write_text(f"-{slept:.3f}")
    woke = time.time()
    return slept, sleeper.first_request(20) - DELAY - woke


def all_are_read_again(sleeper: Sleeper) -> None:
    requested = sleeper.all_requested()
    assert sorted(requested) == ACCOUNTS
    assert requested[1:] == sorted(requested[1:], reverse=True)  # the first is that of the read that ended first


def a_steady_clock_that_stepped_ahead_refreshes_all_at_once_and_reads_every_token_once_more(
    folder: Path, settled: Settled
) -> None:
    with Shifted(folder, vault_tls=False) as world:
        sleeper = Sleeper(world, sync="1s")
        settled()
        with sleeper.stopped():
            sleeper.steady.write_text("100")
        sleeper.first_request(WITHIN)
        assert sleeper.all_requested() == BY_EXPIRY
        daemon = sleeper.daemon
        assert abs(daemon.wait_for("worker.paused")["duration"] - 100) < 3
        assert abs(daemon.wait_for("clock.skewed", against="vault")["skew"] - 100) < 3
        time.sleep(3)  # some more syncs
        assert len(daemon.events("worker.paused")) == len(daemon.events("clock.skewed", against="vault"))
        assert len(sleeper.requested()) == len(ACCOUNTS)
        daemon.stop()


def a_wall_clock_set_back_and_forth_by_a_day_makes_nothing_late(folder: Path, settled: Settled) -> None:
    account = ACCOUNTS[0]
    with scene(folder, life=12, vault_tls=False) as world:
        world.add_account(account)
        wall = world.folder / "wall"
        resync = {"APPJWT_TOKENS_RESYNC_INTERVAL": "2s", "APPJWT_LOG_LEVEL": "debug"}
        daemon = world.daemon({**resync, **faketime(wall)})
        daemon.wait_for("token.refreshed")
        settled()
        with Reader(world, [account]) as reader:
            for number, shift in enumerate(("-1d", "+0d", "+1d", "+0d")):
                wall.write_text(shift)
                daemon.wait_for("clock.skewed", count=number + 1)
                daemon.wait_for("accounts.synced", count=len(daemon.events("accounts.synced")) + 3)
                daemon.wait_for("token.refreshed", count=len(daemon.events("token.refreshed")) + 1)
        assert reader.failures == []
        days = [round(line["skew"] / 86400) for line in daemon.events("clock.skewed", against="boottime")]
        assert days == [-1, 1, 1, -1]
        assert daemon.events("clock.skewed", against="vault") == []
        assert [line for line in daemon.events() if line["event"] in ("worker.paused", "refresh.failed")] == []
        assert min(line["remaining_at_refresh"] for line in daemon.events("token.refreshed", reason="due")) > 2
        put = world.openbao.client.secrets.kv.v2.create_or_update_secret
        put(f"liveperson/tokens/{account}", {"access_token": "x"})
        daemon.wait_for("token.repaired", within=20)
        daemon.stop()


class Nodes(Server):
    """An address with three nodes of Vault behind it, whose answers have other Dates and take their time."""

    def __init__(self, vault: str, *, skews: tuple[float, ...], delays: tuple[float, ...]) -> None:
        super().__init__(self._carry)
        self._vault = urlsplit(vault)
        self._nodes = zip(cycle(skews), cycle(delays), strict=False)
        self.asked: list[str] = []
        self.enabled = False

    def reads(self) -> int:
        """Count the reads of tokens."""
        return sum("GET /v1/secret/data/liveperson/tokens/" in each for each in self.asked)

    async def _carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        asked = await request(reader)
        self.asked.append(asked.split(b"\r\n", 1)[0].decode())
        there_reader, there_writer = await asyncio.open_connection(self._vault.hostname, self._vault.port)
        asked = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", asked)
        there_writer.write(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answer = await there_reader.read(-1)
        there_writer.close()
        skew, delay = next(self._nodes) if self.enabled else (0.0, 0.0)
        date = re.search(rb"\r\nDate: ([^\r]*)", answer)
        assert date
        shown = parsedate_to_datetime(date[1].decode()) + timedelta(seconds=skew)
        answer = answer.replace(date[0], b"\r\nDate: " + format_datetime(shown, usegmt=True).encode())
        await asyncio.sleep(delay)
        writer.write(answer)
        await writer.drain()


@contextmanager
def behind(world: Scene, nodes: Nodes) -> Iterator[Daemon]:
    """Run a daemon of three accounts that is ready, behind these nodes."""
    for account in ACCOUNTS[:3]:
        world.add_account(account)
    with nodes:
        url = {"APPJWT_VAULT_ADDRESS": nodes.url}
        daemon = world.daemon({**url, "APPJWT_TOKENS_RESYNC_INTERVAL": "1h", "APPJWT_LOG_LEVEL": "debug"})
        daemon.wait_for("token.refreshed", count=3)
        nodes.enabled, nodes.asked = True, []
        yield daemon
        assert daemon.events("worker.paused") == []
        daemon.stop()


def nodes_whose_clocks_differ_make_every_token_be_read_again_once_a_minute(folder: Path, settled: Settled) -> None:
    with scene(folder, vault_tls=False) as world:
        nodes = Nodes(world.openbao.address, skews=(-5, 0, 5), delays=(0,))
        with behind(world, nodes) as daemon:
            settled()
            daemon.wait_for("clock.skewed", against="vault")
            daemon.wait_for("accounts.synced", count=len(daemon.events("accounts.synced")) + 8)
            assert nodes.reads() == 3
            assert len(daemon.events("clock.skewed")) <= 2
            # the second one is planned for a minute after the first
            eventually(lambda: nodes.reads() == 6 or None, 70)


def a_slow_answer_is_no_jump_of_the_clock(folder: Path, settled: Settled) -> None:
    with scene(folder, vault_tls=False) as world:
        nodes = Nodes(world.openbao.address, skews=(0,), delays=(4, 0, 0))
        with behind(world, nodes) as daemon:
            settled()
            daemon.wait_for("accounts.synced", count=len(daemon.events("accounts.synced")) + 6)
            assert nodes.reads() == 0
            assert daemon.events("clock.skewed") == []


def a_vault_90_s_behind_makes_no_worker_repair_the_other(folder: Path, settled: Settled) -> None:
    of_a_vault_whose_clock_is_wrong(folder, settled, -90)


def a_vault_2_h_ahead_makes_no_worker_repair_the_other(folder: Path, settled: Settled) -> None:
    of_a_vault_whose_clock_is_wrong(folder, settled, 7200)


def of_a_vault_whose_clock_is_wrong(folder: Path, settled: Settled, off: int) -> None:
    with scene(folder, vault_tls=False) as world, Nodes(world.openbao.address, skews=(off,), delays=(0,)) as nodes:
        nodes.enabled = True
        for account in ACCOUNTS[:4]:
            world.add_account(account)
        changes = {"APPJWT_VAULT_ADDRESS": nodes.url, "APPJWT_TOKENS_RESYNC_INTERVAL": "1s"}

        def start() -> list[Daemon]:
            return [world.daemon(changes) for _ in range(2)]

        def settle(daemons: list[Daemon]) -> int:
            """Let each read every token some times; the tokens that were requested so far."""
            for daemon in daemons:
                daemon.wait_for("worker.ready")
            reads = nodes.reads()
            eventually(lambda: nodes.reads() >= reads + 32 or None)
            return world.liveperson.mints()

        daemons = start()
        # both may have begun before either's token was there to be adopted
        requested = settle(daemons)
        settled()
        assert 4 <= requested <= 8
        assert settle(daemons) == requested
        for daemon in daemons:
            daemon.stop()
        again = start()
        assert settle(again) == requested
        for daemon in (*daemons, *again):
            assert daemon.events("token.repaired") == daemon.events("refresh.failed") == []
        skew_line = again[0].wait_for("clock.skewed", against="vault")
        assert abs(skew_line["skew"] + off) < 4
        for daemon in again:
            daemon.stop()
        done = world.call("--check", "--output", "json", changes=changes)
        failed = [line for line in done.document["checks"] if not line["ok"]]
        assert [line["check"] for line in failed] == ["clock vault"]
        assert "set the clock of vault, which alone differs" in failed[0]["remedy"]


SCENARIOS: Scenarios = {
    a_process_stopped_for_a_lifetime_refreshes_all_at_once_and_earliest_expiry_first: None,
    after_a_pause_in_which_the_steady_clock_stood_still_every_token_is_read_again: None,
    after_a_pause_in_which_both_clocks_stood_still_every_token_is_read_again: "faketime",
    nodes_whose_clocks_differ_make_every_token_be_read_again_once_a_minute: None,
    a_wall_clock_set_back_and_forth_by_a_day_makes_nothing_late: "faketime",
    a_steady_clock_that_stepped_ahead_refreshes_all_at_once_and_reads_every_token_once_more: None,
    a_vault_90_s_behind_makes_no_worker_repair_the_other: None,
    a_vault_2_h_ahead_makes_no_worker_repair_the_other: None,
    a_slow_answer_is_no_jump_of_the_clock: None,
}
"""The longest first."""
AT_ONCE = 5
"""Of these; the processes of one that waits need next to nothing."""


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    with begun(SCENARIOS, request, tmp_path_factory, AT_ONCE) as results:
        yield results


@for_each(SCENARIOS)
def test_clocks_and_pauses(name: str, scenarios: dict[str, Future[None]]) -> None:
    scenarios[name].result()
