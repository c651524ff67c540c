"""A start with too few threads or descriptors on the machine: it is reported, and tried again."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.processes import Scene, eventually, scene

ACCOUNT = "le81823118"
THREADS, DESCRIPTORS = "--nproc", "--nofile"
NOBODY = "--reuid=54321"
"""A user without other processes: the limit counts all of a user's threads, and none of root's."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "world") as made:
        made.add_account(ACCOUNT)
        yield made


class Limited:
    """A daemon that starts under a limit, until `lift`."""

    def __init__(self, world: Scene, limit: str, number: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = "http://{}:{}/".format(*free.getsockname())
        self._log = world.folder / "limited.log"
        self._limit = limit
        # root's right to read all files stays; that to have any number of threads is dropped with the rest
        as_nobody = [NOBODY, "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
        self._user = ["setpriv", *as_nobody] if os.geteuid() == 0 else []
        with self._log.open("wb") as log:
            self.process = world.start(
                behind=[*self._user, "prlimit", f"{limit}={number}:"],
                changes={"APPJWT_HTTP_LISTEN": self._address.strip("htp:/")},
                stderr=log,
            )

    def lift(self) -> None:
        prlimit = [*self._user, "prlimit", "--pid", str(self.process.pid)]
        hard = subprocess.check_output([*prlimit, self._limit, "--output=HARD", "--noheadings"], text=True).strip()
        subprocess.run([*prlimit, f"{self._limit}={hard}:"], check=True)

    def get(self, path: str) -> int | None:
        """Return the status; None where there is no answer."""
        try:
            with urllib.request.urlopen(self._address + path, timeout=1) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def complaints(self) -> list[str]:
        assert self.process.poll() is None, self._log.read_text()
        return [line for line in self._log.read_text().splitlines() if not line.startswith("{")]

    def events(self) -> list[str]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]


@contextmanager
def limited(world: Scene, limit: str, number: int) -> Iterator[Limited]:
    daemon = Limited(world, limit, number)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()
        world.keep((world.folder / "limited.log").read_text())


TOO_FEW = [
    *((THREADS, number, "can't start new thread") for number in (1, 4, 16)),
    *((DESCRIPTORS, number, "[Errno 24] Too many open files: '/dev/null'") for number in (8, 20)),
]


@pytest.mark.tool("prlimit", "setpriv")
@pytest.mark.parametrize(("limit", "number", "text"), TOO_FEW)
def test_a_start_with_too_few_is_told_and_tried_again(limit: str, number: int, text: str, world: Scene) -> None:
    complaint = f"appjwt-worker: too few threads or descriptors to start: {text}; trying again in 2 s"
    with limited(world, limit, number) as daemon:
        while len(daemon.complaints()) < 2:
            assert daemon.get("livez") is None
        assert set(daemon.complaints()) == {complaint}
        daemon.lift()
        eventually(lambda: world.openbao.get_token(ACCOUNT))
        eventually(lambda: daemon.get("readyz") == 200)
        assert daemon.get("livez") == 200
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
        assert (daemon.events()[0], daemon.events()[-1]) == ("worker.started", "worker.stopped")
    assert world.logins() == []


@pytest.mark.tool("prlimit", "setpriv")
@pytest.mark.parametrize("number", range(17, 20))
def test_a_start_with_just_enough_becomes_ready(number: int, world: Scene) -> None:
    with limited(world, THREADS, number) as daemon:
        eventually(lambda: world.openbao.get_token(ACCOUNT))
        eventually(lambda: daemon.get("readyz") == 200)
        assert daemon.complaints() == []
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    assert world.logins() == []


@pytest.mark.tool("prlimit", "setpriv")
def test_sigterm_ends_it_while_it_waits(world: Scene) -> None:
    for pause in (0, 0.5, 1, 1.5, 2, 2.05, 2.1):  # it is replaced by a new process after two seconds
        with limited(world, THREADS, 1) as daemon:
            eventually(daemon.complaints)
            time.sleep(pause)
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(5) == 0


@pytest.mark.tool("setpriv", "unshare")
def test_a_settings_folder_that_cannot_be_read_is_named(world: Scene) -> None:
    """The user lacks root's right to read all; the file system is a separate one."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    script = 'mount -t tmpfs none /etc && mkdir -m 000 /etc/appjwt-worker && exec setpriv --bounding-set=-all "$@"'
    for flags in ([], ["--status"]):
        done = world.call(*flags, behind=["unshare", "-rm", "sh", "-c", script, "sh"])
        text = "appjwt-worker: /etc/appjwt-worker/worker.toml: cannot be read: permission denied\n"
        assert (done.status, done.out, done.err) == (2, "", text)
