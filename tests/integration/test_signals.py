"""The end by a signal, at any moment: what runs is finished, what was obtained is written, no login is left."""

import asyncio
import json
import random
import signal
import subprocess
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from sandbox.faults import Fault
from tests.integration.processes import Scene, eventually, scene
from tests.integration.servers import Server

ACCOUNTS = [f"le4427019{n}" for n in range(10)]
STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
OTHERS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "world") as made:
        for account in ACCOUNTS:
            made.add_account(account)
        yield made


class Mode:
    """A mode that runs, as a process whose streams are read at its end."""

    def __init__(self, world: Scene, *flags: str, **changes: str) -> None:
        self._world = world
        named = {f"APPJWT_{name}": value for name, value in changes.items()}
        self.process = world.start(*flags, changes=named, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, number: signal.Signals, within: float = 20) -> tuple[int, str, str]:
        """Return the exit status, stdout and stderr after this signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=within)
        self._world.keep(out.decode(), err.decode())  # which contain no traceback, then
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture(autouse=True)
def _hangup() -> Iterator[None]:
    """Let SIGHUP have its effect: who runs the tests by nohup ignores it, and a child inherits that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def requests(world: Scene) -> int:
    return sum(seen.service == "sentinel" for seen in world.liveperson.seen)


# The daemon


def test_the_daemon_ignores_what_is_not_to_stop_it_and_sigquit_stops_it_in_order(world: Scene) -> None:
    daemon = world.daemon()
    daemon.wait_for("token.refreshed", count=len(ACCOUNTS))
    for number in OTHERS:
        daemon.process.send_signal(number)
    world.add_account("12345678")
    daemon.wait_for("token.refreshed", account="12345678")
    assert len(world.logins()) == 1
    daemon.stop(signal.SIGQUIT)
    assert daemon.events()[-1]["event"] == "worker.stopped"
    assert world.logins() == []


def has_handler(process: "subprocess.Popen[bytes]") -> bool:
    """Return True once the process handles SIGTERM; before that Python itself is being started."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_sigterm_in_its_first_moments_ends_it_and_leaves_no_login(world: Scene) -> None:
    """Before it has handlers the kernel ends it; from then on the exit status is 0."""
    chance = random.Random(19)

    def after_its_start(pause: float) -> int:
        with Mode(world, ACCOUNTS_SYNC_INTERVAL="1s") as daemon:
            time.sleep(pause)
            return daemon.end(signal.SIGTERM)[0]

    def after_its_handler(pause: float) -> int:
        with Mode(world, ACCOUNTS_SYNC_INTERVAL="1s") as daemon:
            eventually(lambda: has_handler(daemon.process))
            time.sleep(pause)
            return daemon.end(signal.SIGTERM, within=10)[0]

    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(after_its_start, [chance.uniform(0, 1.2) for _ in range(40)])
        in_order = pool.map(after_its_handler, [0.0, 0.2, 0.4, 0.6, 0.8])
    assert {*ended} <= {0, -signal.SIGTERM}
    assert {*in_order} == {0}
    assert world.logins() == []


# A manual mode


@pytest.mark.parametrize("number", [*STOPPING, *OTHERS])
def test_a_refresh_that_is_interrupted_finishes_what_runs_and_reports_it(number: signal.Signals, world: Scene) -> None:
    world.liveperson.faults.set(Fault(delay=1))
    with Mode(world, "--refresh-all", "--output", "json", SENTINEL_MAX_IN_FLIGHT="4") as mode:
        eventually(lambda: requests(world) >= 2)
        status, out, err = mode.end(number)
    report = json.loads(out)
    assert status == 130
    assert err.startswith("appjwt-worker: interrupted: waiting for the running attempts")
    assert [line["account"] for line in report["accounts"]] == ACCOUNTS
    done = {line["account"]: line["fingerprint"] for line in report["accounts"] if line["outcome"] == "refreshed"}
    stored = {account: token["fingerprint"] for account in ACCOUNTS if (token := world.openbao.get_token(account))}
    assert done == stored
    assert 2 <= len(done) == world.liveperson.mints() == report["refreshed"] < len(ACCOUNTS)
    left = {(line["outcome"], line["error"]) for line in report["accounts"] if line["account"] not in done}
    assert left == {("skipped", "interrupted before it was started")}
    assert world.logins() == []


@pytest.mark.parametrize("number", STOPPING)
def test_the_second_signal_ends_it_at_once(number: signal.Signals, world: Scene) -> None:
    world.liveperson.faults.set(Fault(hang=True))
    with Mode(world, "--refresh-all", SENTINEL_TIMEOUT="60s") as mode:
        eventually(lambda: requests(world) >= 2)
        mode.process.send_signal(number)
        assert mode.process.stderr
        first = mode.process.stderr.readline()
        status, out, err = mode.end(number)
    assert b"interrupt again to end at once" in first
    assert (status, out, err) == (130, "", "")


@pytest.mark.parametrize("flags", [["--refresh-all"], ["--refresh", ACCOUNTS[0]], ["--status"], ["--check"]])
def test_a_mode_that_is_interrupted_at_any_moment_leaves_no_login_and_no_traceback(
    flags: list[str], world: Scene
) -> None:
    assert world.call("--refresh-all").status == 0  # so that --status, where it gets to its end, has nothing to report
    chance = random.Random(21)

    def try_once(pause: float) -> int:
        with Mode(world, *flags) as mode:
            time.sleep(pause)
            return mode.end(signal.SIGTERM)[0]

    with ThreadPoolExecutor(2) as pool:
        ended = [*pool.map(try_once, [chance.uniform(0, 1) for _ in range(12)])]
    assert set(ended) <= {0, 130, -signal.SIGTERM}
    assert world.logins() == []


class HeldRequest:
    """A way to Vault on which the answer to one kind of request waits until it is released."""

    def __init__(self, vault: str, path: bytes) -> None:
        self._vault = urlsplit(vault)
        self._path = path
        self.seen, self.release = threading.Event(), threading.Event()

    async def __call__(self, reader: StreamReader, writer: StreamWriter) -> None:
        from_vault, to_vault = await asyncio.open_connection(self._vault.hostname, self._vault.port)

        async def requests() -> None:
            while piece := await reader.read(65536):
                to_vault.write(piece)
                if self._path in piece:
                    self.seen.set()
            to_vault.close()

        async def answers() -> None:
            while piece := await from_vault.read(65536):
                if self.seen.is_set():
                    await asyncio.to_thread(self.release.wait)
                writer.write(piece)
            writer.close()

        await asyncio.gather(requests(), answers())


@pytest.mark.parametrize("flags", [["--refresh-all"], ["--refresh", ACCOUNTS[0]], ["--status"], ["--check"]])
def test_a_login_that_is_under_way_is_revoked_as_soon_as_it_is_answered(flags: list[str], tmp_path: Path) -> None:
    with scene(tmp_path / "plain", vault_tls=False) as world:
        world.add_account(ACCOUNTS[0])
        held = HeldRequest(world.openbao.address, b"/auth/approle/login")
        with Server(held) as way, Mode(world, *flags, VAULT_ADDRESS=way.url) as mode:
            assert held.seen.wait(30)
            eventually(world.logins)
            mode.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # it takes the signal, and waits
            held.release.set()
            status, out, err = mode.end(signal.SIGCONT)
        assert (status, out, err) == (130, "", "appjwt-worker: interrupted\n")
        assert world.logins() == []


def test_a_signal_amid_the_end_of_a_mode_does_not_keep_it_from_revoking_its_login(tmp_path: Path) -> None:
    """The answer to the revocation waits; by then all is reported."""
    with scene(tmp_path / "plain", vault_tls=False) as world:
        world.add_account(ACCOUNTS[0])
        held = HeldRequest(world.openbao.address, b"/auth/token/revoke-self")
        with Server(held) as way, Mode(world, "--refresh-all", "--output", "json", VAULT_ADDRESS=way.url) as mode:
            assert held.seen.wait(30)
            mode.process.send_signal(signal.SIGTERM)
            held.release.set()
            status, out, err = mode.end(signal.SIGCONT)
        assert (status, json.loads(out)["refreshed"], err) == (0, 1, "")
        assert world.logins() == []


@pytest.mark.tool("nohup")
def test_under_nohup_it_goes_on_when_the_terminal_goes(world: Scene) -> None:
    world.liveperson.faults.set(Fault(delay=0.5))
    process = world.start(
        *("--refresh-all", "--output", "json"),
        behind=["nohup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: requests(world) >= 2)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate()
    world.keep(out.decode())
    assert (process.returncode, json.loads(out)["refreshed"]) == (0, len(ACCOUNTS))
