"""`make demo`: the installed command against a real OpenBao and a local LivePerson, watched by a reader."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hvac
import requests

from sandbox.faults import Fault
from sandbox.openbao import bao
from sandbox.world import World

_LIFE = timedelta(seconds=20)
_LONGER = timedelta(minutes=5)
"""Token lifetime for a user who plays with it."""
_SPARE = "le55555555"
"""Known to LivePerson, but not yet in Vault."""
_OUTAGE = 5
_ACCOUNTS = {"le81823118": "va", "le44270193": "va", "12345678": "lo"}
_BAR = 10
_WIDTH = 28
_JWS_AT = 6
_MANUAL_AT = 14
_JUST_BEFORE = timedelta(seconds=2)

_Tokens = dict[str, dict[str, str]]

_READER_POLICY = """
path "secret/data/liveperson/tokens/*" { capabilities = ["read"] }
"""
_OPERATOR_POLICY = """
path "secret/*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }
path "sys/internal/ui/mounts/*" { capabilities = ["read"] }
"""


@dataclass
class Seen:
    """The reader's observations, for the summary."""

    reads: int = 0
    expired: int = 0
    least_left: float = 1.0
    versions: dict[str, int] = field(default_factory=dict)

    def take(self, account: str, token: dict[str, str], version: int) -> float:
        """Note one read; the share of life that was left."""
        left = (int(token["exp"]) - time.time()) / (int(token["exp"]) - int(token["iat"]))
        self.reads += 1
        self.expired += left <= 0
        self.least_left = min(self.least_left, left)
        self.versions[account] = version
        return left

    def replaced(self) -> int:
        return sum(version - 1 for version in self.versions.values())


class Reader:
    """An app: it may read the tokens and nothing else, and has no client secret."""

    def __init__(self, world: World, folder: Path) -> None:
        world.openbao.policy("reader", _READER_POLICY)
        http = requests.Session()
        http.trust_env = False
        http.verify = str(world.openbao.ca_file)
        token = world.openbao.token(["reader"])
        self._vault: Any = hvac.Client(url=world.openbao.address, token=token, session=http, timeout=2)
        self.login = _shell(folder / "reader.env", world, token, {})
        """A file for a user who wants to look, too."""

    def read(self, account: str) -> tuple[dict[str, str], int] | None:
        """Return the token with its other fields, and its version; None = there is none, or OpenBao does not answer."""
        try:
            answer = self._vault.secrets.kv.v2.read_secret_version(
                f"liveperson/tokens/{account}", raise_on_deleted_version=True
            )
        except (hvac.exceptions.VaultError, requests.RequestException):
            return None
        fields = answer["data"]["data"]
        return (fields, answer["data"]["metadata"]["version"]) if "fingerprint" in fields else None

    def may_write(self) -> bool:
        try:
            self._vault.secrets.kv.v2.create_or_update_secret("liveperson/tokens/12345678", {"access_token": "mine"})
        except hvac.exceptions.Forbidden:
            return False
        return True


def main() -> int:
    seconds = float(os.environ.get("DEMO_SECONDS", "60"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers and the folder go then, too
    _say("A real OpenBao server and a local stand-in for LivePerson start on this machine.")
    life = _LIFE if seconds else _LONGER
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), token_life=life) as world:
        for account, region in _ACCOUNTS.items():
            world.add_account(account, region)
        _say(f"Three accounts in two of LivePerson's regions; their AppJWTs live {life.seconds} s instead of an hour.")
        _say("The worker logs in by AppRole, under config/policies/worker.hcl:")
        _show(world, [])
        reader = Reader(world, Path(folder))
        if not seconds:
            world.settings["APPJWT_HTTP_LISTEN"] = "127.0.0.1:0"
        with _worker(world) as (worker, ready):
            if not ready.wait(20):
                _say("The worker did not get ready.")
                return 1
            refused = "refuses its write" if not reader.may_write() else "LET IT WRITE"
            _say(f"A reader looks each second. It holds a token that may only read: OpenBao {refused}.")
            _say("Look yourself meanwhile, in another terminal (DEMO_SECONDS=0 goes on until Ctrl-C):")
            print(f"    . {reader.login}; sh examples/read-token.sh {next(iter(_ACCOUNTS))}")
            if not seconds:
                _offer(world, Path(folder))
            seen = Seen()
            stops: list[int] = []
            for each in (signal.SIGINT, signal.SIGTERM):  # as an exception it could be lost in a library's destructor
                signal.signal(each, lambda number, _: stops.append(number))
            try:
                _watch(world, reader, seen, seconds, worker, stops)
            finally:
                for each in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(each, signal.default_int_handler)
                worker.send_signal(signal.SIGTERM)
                status = worker.wait(20)
        for account in _ACCOUNTS:
            if found := reader.read(account):
                seen.take(account, *found)
    enough = len(_ACCOUNTS) if seconds and not stops else 0
    print("\n" if stops else "", end="")
    _say(f"The worker ended with status {status}.\n")
    if not seen.expired:
        print("  No reader ever saw a token that had ended.")
    first = len(seen.versions)
    print(
        f"  tokens written       {first + seen.replaced()}: {first} first ones and {seen.replaced()} that replaced one"
    )
    print(f"  token requests       {world.liveperson.mints()} that were answered with a token")
    print(f"  reads                {seen.reads}")
    print(f"  least life left seen {seen.least_left:.0%}")
    print(f"  expired reads        {seen.expired}")
    return int(bool(seconds) and (seen.expired > 0 or status != 0 or seen.replaced() < enough))


def _watch(
    world: World, reader: Reader, seen: Seen, seconds: float, worker: "subprocess.Popen[str]", stops: list[int]
) -> None:
    """Read and print once a second while the worker runs, until there is a stop; have the scenes in between."""
    began = time.monotonic()
    scenes = _scenes(world, (seconds or 60) / 2)
    next(scenes)
    print("\nPer account: the token's fingerprint, and what is left of its life.")
    print(f"\n{'':8}" + "".join(f"{account}, region {region}".ljust(_WIDTH) for account, region in _ACCOUNTS.items()))
    is_reported = False
    while not stops and (not seconds or (worker.poll() is None and time.monotonic() - began < seconds)):
        if worker.poll() is not None and not is_reported:
            _say("The worker is gone, so nobody renews the tokens. In the other terminal: appjwt-worker starts one.")
            is_reported = True
        at = time.monotonic() - began
        found = {account: reader.read(account) for account in _ACCOUNTS}
        cells = [_cell(each[0], seen.take(account, *each)) if each else "no token" for account, each in found.items()]
        tokens = {account: each[0] for account, each in found.items() if each}
        print(f"{at:4.0f} s  " + "".join(cell.ljust(_WIDTH) for cell in cells).rstrip(), flush=True)
        with suppress(StopIteration):
            scenes.send((at, tokens))
        time.sleep(max(0.0, began + at + 1 - time.monotonic()))


def _scenes(world: World, midway: float) -> Generator[None, tuple[float, _Tokens], None]:
    """Play further scenes, one after another; each step is sent the time and the tokens that the reader just saw."""
    at, tokens = yield
    account = next(iter(_ACCOUNTS))
    while at < _JWS_AT or account not in tokens:
        at, tokens = yield
    _fetch_consumer_jws(world, account, tokens[account]["access_token"])
    while at < _MANUAL_AT:
        at, tokens = yield
    _show(world, ["--refresh", account])
    print(_indented(world.run("--refresh", account).stdout))
    # begin the outage just before a token is due, or no request would fail in it
    while at < midway or min(map(_until_due, tokens.values()), default=timedelta.max) > _JUST_BEFORE:
        at, tokens = yield
    _say(f"LivePerson Sentinel goes off for {_OUTAGE} s: whoever is due meanwhile is answered 503, and tries again.")
    with world.liveperson.faults.on(Fault(status=503)):
        ends = at + _OUTAGE
        while at < ends:
            at, tokens = yield
    _say("Sentinel is back. The reader noticed nothing: the old tokens still lived.")


def _until_due(token: dict[str, str]) -> timedelta:
    return datetime.fromisoformat(token["refresh_at"]) - datetime.now(UTC)


def _cell(token: dict[str, str], left: float) -> str:
    full = round(max(left, 0) * _BAR)
    life = int(token["exp"]) - int(token["iat"])
    return f"{token['fingerprint'][:8]} {'█' * full}{'░' * (_BAR - full)} {left * life:4.0f} s"


def _fetch_consumer_jws(world: World, account: str, token: str) -> None:
    """Use a token as an app does: LivePerson's ConsumerJWS, which verifies it."""
    answer = requests.post(
        f"https://{world.liveperson.hosts[_ACCOUNTS[account]]}/api/account/{account}/consumer?v=1.0",
        headers={"Authorization": token},
        json={"ext_consumer_id": "demo"},
        verify=str(world.liveperson.ca_file),
        timeout=5,
    )
    _say(f"With a token read from Vault the reader asks LivePerson for a ConsumerJWS: {answer.status_code} Created.")


@contextmanager
def _worker(world: World) -> Iterator[tuple[subprocess.Popen[str], threading.Event]]:
    """Run the daemon as a separate process, and print its log in short."""
    process = subprocess.Popen(world.command(), env=world.environment(), stderr=subprocess.PIPE, text=True)
    ready = threading.Event()
    lines = threading.Thread(target=_forward_output, args=(process, ready), daemon=True)
    lines.start()
    try:
        yield process, ready
    finally:
        process.kill()
        process.wait()
        lines.join()
        if process.stderr:
            process.stderr.close()


def _forward_output(process: subprocess.Popen[str], ready: threading.Event) -> None:
    """Print the log in short; `ready` once every account has a token."""
    waiting = set(_ACCOUNTS)
    for line in process.stderr or ():
        event = json.loads(line)
        match event["event"]:
            case "token.refreshed":
                why = {"missing": "there was none", "due": "it was due"}.get(event["reason"], event["reason"])
                text = f"{event['account']}: new token ({why}), now version {event['vault_version']} in Vault"
            case "worker.started" if "http" in event:
                text = f"worker.started, its page is at http://{event['http']}/"
            case "token.adopted":
                text = f"{event['account']}: found the token that somebody else refreshed, and plans from it"
            case "refresh.failed":
                text = f"{event['account']}: {event['error']}; {event['remaining']:.0f} s left, tries again"
            case name:
                text = f"{name} {event.get('account', '')}".rstrip()
        print(f"        worker: {text}", flush=True)
        if event["event"] == "token.refreshed":
            waiting.discard(event["account"])
        if not waiting:
            ready.set()


def _show(world: World, flags: list[str]) -> None:
    """Print the command as it is run."""
    if not flags:
        for name, value in world.settings.items():
            print(f"    export {name}={value}")
    print(f"    $ appjwt-worker {' '.join(flags)}".rstrip(), flush=True)


def _offer(world: World, folder: Path) -> None:
    """Print a login with an operator's rights, and an account that is not in Vault yet."""
    world.openbao.policy("operator", _OPERATOR_POLICY)
    login = _shell(folder / "operator.env", world, world.openbao.token(["operator"]), world.settings)
    spare, secret = world.liveperson.add_account(_SPARE), folder / "client_secret.txt"
    secret.touch(0o600)
    secret.write_text(spare.client_secret)
    _say("Or be the operator: add an account, break its secret, find out why, mend it (docs/operations.md tells how).")
    print(f"    . {login}; appjwt-worker --status")
    print(
        f"    bao kv put -mount=secret liveperson/accounts/{_SPARE} client_id={spare.client_id} client_secret=@{secret}"
    )


def _shell(file: Path, world: World, token: str, settings: Mapping[str, str]) -> Path:
    """Write the environment for a shell: a login at OpenBao, and the path of the commands."""
    login = {"VAULT_ADDR": world.openbao.address, "VAULT_CACERT": world.openbao.ca_file, "VAULT_TOKEN": token}
    path = f"{Path(sys.executable).parent}:{Path(bao()).parent}:$PATH"
    file.touch(0o600)
    lines = {**login, **settings, "PATH": f'"{path}"'}
    file.write_text("".join(f"export {name}={value}\n" for name, value in lines.items()))
    return file


def _say(text: str) -> None:
    print(f"\n>>> {text}", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip().splitlines())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
