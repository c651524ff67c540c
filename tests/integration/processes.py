"""The installed command as processes of a small world. All their output is collected, and searched for secrets."""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import hvac
import jwt
import requests
import trustme

from sandbox.world import World
from tests.leaks import leaks

Settings = Mapping[str, str | None]
"""Changes to the world's settings; None takes one away."""

PIPE = 4096
"""Bytes that fit into a small pipe, such as between a daemon and its shipper."""

Thing = TypeVar("Thing")


def small_pipe() -> tuple[int, int]:
    """Return the two ends of a pipe that little fits into: where to read, and where to write."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)
    return out, into


def eventually(look: Callable[[], Thing | None], within: float = 60) -> Thing:
    """Return the first truthy result of `look`, or raise TimeoutError."""
    give_up = time.monotonic() + within
    while not (found := look()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {within} s")
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Daemon:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def events(self, name: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """Return the log lines so far, of this event with these fields."""
        whole = self._log.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if name in (None, line["event"]) and fields.items() <= line.items()]

    @property
    def url(self) -> str:
        """Return the address of its HTTP port, once it has one."""
        return f"http://{self.wait_for('worker.started')['http']}"

    def probe(self, path: str, method: str = "GET") -> int:
        """Return the status of an answer at its HTTP port."""
        return requests.request(method, f"{self.url}{path}", timeout=5).status_code

    def wait_for(self, name: str, *, count: int = 1, within: float = 60, **fields: object) -> dict[str, Any]:
        """Return the log line that makes it this many."""

        def found() -> dict[str, Any] | None:
            assert self.process.poll() is None, self._log.read_text()
            lines = self.events(name, **fields)
            return lines[count - 1] if len(lines) >= count else None

        try:
            return eventually(found, within)
        except TimeoutError as error:
            raise AssertionError(f"no {name} {fields} in:\n{self._log.read_text()}") from error

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Tell it to end; the seconds that it took. It must end well."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(25) == 0, self._log.read_text()
        return time.monotonic() - began


class Scene(World):
    """A world with the processes that run in it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, **options)
        self.folder = folder
        self._logs: list[Path] = []
        self._printed: list[str] = []
        self._processes = ExitStack()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._processes.close()
            if error is None:
                self.check_what_was_printed()
        finally:
            super().__exit__(kind, error, trace)

    def environment(self, changes: Settings | None = None) -> dict[str, str]:
        changed = {**super().environment(), **(changes or {})}
        return {name: value for name, value in changed.items() if value is not None}

    def call(self, *flags: str, behind: Sequence[str] = (), changes: Settings | None = None) -> Done:
        """Run a mode to its end, behind another command as in `start`, and keep what it printed."""
        done = subprocess.run(
            [*behind, *self.command(*flags)],
            env=self.environment(changes),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.keep(done.stdout, done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)

    def daemon(self, changes: Settings | None = None) -> Daemon:
        """Start a daemon, which is stopped with the scene at the latest."""
        log = self._new_log()
        with log.open("wb") as out:
            return Daemon(self._start(out.fileno(), changes), log)

    def daemon_with_shipper(self, changes: Settings | None = None) -> tuple[Daemon, subprocess.Popen[bytes]]:
        """Start a daemon whose log passes through a small pipe to another process, which writes it to the file."""
        log = self._new_log()
        out, into = small_pipe()
        with log.open("wb") as file:
            shipper = subprocess.Popen(["cat"], stdin=out, stdout=file)
        self._processes.callback(shipper.wait)
        process = self._start(into, changes)
        os.close(out)
        os.close(into)
        return Daemon(process, log), shipper

    @contextmanager
    def unknown_ca(self) -> Iterator[None]:
        """Replace the trusted CA by one that has signed none of LivePerson's certificates."""
        file = self.liveperson.ca_file
        before = file.read_bytes()
        trustme.CA().cert_pem.write_to_path(file)
        yield
        file.write_bytes(before)

    @property
    def latest_log(self) -> list[dict[str, Any]]:
        """Return the lines of the daemon that was started last."""
        return [json.loads(line) for line in self._logs[-1].read_text().rpartition("\n")[0].splitlines()]

    def _new_log(self) -> Path:
        self._logs.append(self.folder / f"daemon-{len(self._logs)}.log")
        return self._logs[-1]

    def start(
        self, *flags: str, behind: Sequence[str] = (), changes: Settings | None = None, **streams: Any
    ) -> subprocess.Popen[bytes]:
        """Start the command, which is killed with the scene at the latest.

        :param behind: what to start it with, such as `nohup`.
        :param streams: stdin, stdout and stderr as Popen takes them.
        """
        process = subprocess.Popen([*behind, *self.command(*flags)], env=self.environment(changes), **streams)
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def _start(self, out: int, changes: Settings | None) -> subprocess.Popen[bytes]:
        often = {"APPJWT_ACCOUNTS_SYNC_INTERVAL": "1s", **(changes or {})}
        return self.start(changes=often, stdout=out, stderr=subprocess.STDOUT)

    def keep(self, *printed: str) -> None:
        self._printed += printed

    def check_what_was_printed(self) -> None:
        printed = "\n".join([*self._printed, *(log.read_text() for log in self._logs)])
        found = leaks(printed, [*self.secrets, *self._stored_tokens()])
        assert not found, found
        assert "Traceback" not in printed, printed

    def versions(self, account: str) -> dict[str, Any]:
        """Return the versions of a stored token in Vault, by number."""
        answer = self.openbao.client.secrets.kv.v2.read_secret_metadata(f"liveperson/tokens/{account}")
        versions: dict[str, Any] = answer["data"]["versions"]
        return versions

    def custom_metadata(self, account: str) -> dict[str, str]:
        """Return the custom metadata at the path of an account's token; empty if there is none."""
        try:
            answer = self.openbao.client.secrets.kv.v2.read_secret_metadata(f"liveperson/tokens/{account}")
        except hvac.exceptions.InvalidPath:
            return {}
        return answer["data"]["custom_metadata"] or {}

    def logins(self) -> list[str]:
        """Return the accessors of the worker's live logins."""
        ours = [each for each in self.openbao.living() if (each["meta"] or {}).get("role_name") == "appjwt-worker"]
        return [each["accessor"] for each in ours]

    def _stored_tokens(self) -> list[str]:
        """Return every version there still is of every token."""
        kv, found = self.openbao.client.secrets.kv.v2, []
        for path in self._walk("liveperson/tokens/"):
            for version in kv.read_secret_metadata(path)["data"]["versions"]:
                try:
                    answer = kv.read_secret_version(path, version=version, raise_on_deleted_version=True)
                except hvac.exceptions.InvalidPath:  # it ran out
                    continue
                found.append(answer["data"]["data"].get("access_token", ""))
        return found

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            keys = self.openbao.client.secrets.kv.v2.list_secrets(folder)["data"]["keys"]
        except (hvac.exceptions.InvalidPath, requests.ConnectionError):  # empty; or it was killed
            return
        for key in keys:
            if key.endswith("/"):
                yield from self._walk(folder + key)
            else:
                yield folder + key


def faketime(file: Path, shift: str = "+0d") -> dict[str, str]:
    """Return the environment in which the wall clock alone is shifted by the content of this file, at first `shift`."""
    preload = subprocess.run(
        ["faketime", "-m", "-f", "+0d", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
    )
    file.write_text(shift)
    return {
        "LD_PRELOAD": preload.stdout.strip(),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextmanager
def scene(folder: Path, *, life: float = 3600, vault_tls: bool = True) -> Iterator[Scene]:
    with Scene(folder, token_life=timedelta(seconds=life), vault_tls=vault_tls) as made:
        yield made


_READER = 'path "secret/data/liveperson/tokens/*" { capabilities = ["read"] }'


@dataclass
class Reader:
    """An app that may read tokens and nothing else. It polls each path all the while and records what it reads."""

    world: World
    accounts: list[str]
    reads: int = 0
    least_share: float = 1.0
    """Share of a token's lifetime, by its claims and the wall clock."""
    seen: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By account: version and expiry of each token, as often as it changed."""
    failures: list[str] = field(default_factory=list)
    _stop_requested: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.world.openbao.policy("reader", _READER)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(self.world.openbao.ca_file)
        self._session.headers["X-Vault-Token"] = self.world.openbao.token(["reader"])
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_requested.set()
        self._thread.join()
        self._session.close()

    def _poll(self) -> None:
        while not self._stop_requested.wait(0.2):
            for account in self.accounts:
                try:
                    self._read(account)
                except Exception as error:  # noqa: BLE001 - whatever it is, the test is to hear of it
                    self.failures.append(f"{account}: {error!r}")

    def _read(self, account: str) -> None:
        url = f"{self.world.openbao.address}/v1/secret/data/liveperson/tokens/{account}"
        answer = self._session.get(url, timeout=5)
        answer.raise_for_status()
        data = answer.json()["data"]
        claims = jwt.decode(data["data"]["access_token"], options={"verify_signature": False})
        share = (claims["exp"] - time.time()) / (claims["exp"] - claims["iat"])
        self.reads += 1
        self.least_share = min(self.least_share, share)
        if share <= 0:
            self.failures.append(f"{account}: expired")
        now, seen = (data["metadata"]["version"], claims["exp"]), self.seen.setdefault(account, [])
        if seen and (now[0] < seen[-1][0] or now[1] < seen[-1][1]):
            self.failures.append(f"{account}: backwards, {seen[-1]} to {now}")
        if not seen or seen[-1] != now:
            seen.append(now)
