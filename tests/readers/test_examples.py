"""The examples that are programs, on a real Vault: each as it is started by hand, and two as a running app has them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.processes import eventually
from tests.readers.stand import EXAMPLES, PLACES, Vault

HERE = Path(__file__).parent
ACCOUNT = "le81823118"
NODE = pytest.mark.tool("node")
PROGRAMS = [
    pytest.param([sys.executable, "read_token.py"], id="py"),
    pytest.param(["node", "read-token.mjs"], id="mjs", marks=NODE),
    pytest.param(["sh", "read-token.sh", "$ACCOUNT"], id="sh", marks=pytest.mark.tool("curl")),
]
APPS = [
    pytest.param([sys.executable, HERE / "app.py", EXAMPLES / "read_token.py"], id="py"),
    pytest.param(["node", HERE / "app.mjs", EXAMPLES / "read-token.mjs"], id="mjs", marks=NODE),
]
every_program = pytest.mark.parametrize("program", PROGRAMS)
every_app = pytest.mark.parametrize("command", APPS)


def start(program: list[str], environment: dict[str, str], account: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [each.replace("$ACCOUNT", account) for each in program],
        cwd=EXAMPLES,
        env={**environment, "ACCOUNT": account},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def refuses(done: subprocess.CompletedProcess[str]) -> bool:
    """Return True if it ended with an error, without any output that an app could take for a token."""
    return done.returncode != 0 and done.stdout == "" and done.stderr != ""


# Started by hand


@every_program
def test_a_program_reads_what_the_worker_wrote(program: list[str], vault: Vault) -> None:
    token = vault.refresh(ACCOUNT)
    done = start(program, vault.environment(ACCOUNT), ACCOUNT)
    assert (done.returncode, done.stdout) == (0, f"{token}\n"), done.stderr


@every_program
@pytest.mark.parametrize(("account", "namespace"), PLACES)
def test_a_program_reads_the_newest_token(
    program: list[str], account: str, namespace: str | None, vault: Vault
) -> None:
    environment = vault.environment(account, namespace)
    for _ in range(2):
        token = vault.put(account, namespace=namespace)
        done = start(program, environment, account)
        assert (done.returncode, done.stdout) == (0, f"{token}\n"), done.stderr


@every_program
def test_a_program_gives_out_no_token_that_has_expired_or_was_deleted(program: list[str], vault: Vault) -> None:
    environment = vault.environment(ACCOUNT)
    vault.put(ACCOUNT, remaining=-1)
    assert refuses(start(program, environment, ACCOUNT))
    vault.put(ACCOUNT)
    vault.delete(ACCOUNT)
    assert refuses(start(program, environment, ACCOUNT))


@every_program
def test_a_program_ends_where_vault_is_away_or_does_not_answer(program: list[str], vault: Vault) -> None:
    vault.put(ACCOUNT)
    environment = vault.environment(ACCOUNT)
    with vault.line.broken("cut"):
        assert refuses(start(program, environment, ACCOUNT))
    with vault.line.broken("silent"):
        assert refuses(start(program, environment, ACCOUNT))


@pytest.mark.tool("curl")
def test_the_login_of_the_shell_example_is_not_in_the_list_of_processes(vault: Vault) -> None:
    environment, before = vault.environment(ACCOUNT), vault.line.attempts
    with vault.line.broken("silent"):
        shell = subprocess.Popen(
            ["sh", "read-token.sh", ACCOUNT],
            cwd=EXAMPLES,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: vault.line.attempts > before)
        found = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_below(path, shell.pid)]
    assert shell.wait(20) != 0
    assert any(b"curl" in each for each in found)
    assert not any(environment["VAULT_TOKEN"].encode() in each for each in found)


def is_below(cmdline: Path, parent: int) -> bool:
    """Return True if a process was started by this one, or by a child of it."""
    try:
        while cmdline.parent.name != "1":
            above = (cmdline.parent / "stat").read_text().rpartition(")")[2].split()[1]
            if above == str(parent):
                return True
            cmdline = cmdline.parent.parent / above / "cmdline"
    except OSError:  # it ended meanwhile
        pass
    return False


# A running app


class App:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, command: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self) -> str | None:
        """Return the token that it sends; None where it has none to send."""
        token: str | None = self.do("ask").get("result")
        return token


@contextmanager
def running(command: list[str], vault: Vault, account: str) -> Iterator[App]:
    with subprocess.Popen(
        [*command, account],
        env=vault.environment(account),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield App(process)
        process.kill()


@every_app
def test_an_app_reads_again_after_five_minutes(command: list[str], vault: Vault) -> None:
    first = vault.put(ACCOUNT)
    with running(command, vault, ACCOUNT) as app:
        assert app.ask() == first
        second = vault.put(ACCOUNT)
        app.do("later 295")
        assert app.ask() == first
        app.do("later 5")
        assert app.ask() == second


@every_app
@pytest.mark.parametrize("how", ["cut", "silent"])
def test_an_app_goes_on_with_a_live_token_and_tries_again_ten_seconds_after_an_attempt(
    how: Any, command: list[str], vault: Vault
) -> None:
    token = vault.put(ACCOUNT)
    with running(command, vault, ACCOUNT) as app:
        assert app.ask() == token
        app.do("later 300")
        with vault.line.broken(how):
            attempts = [vault.line.attempts]
            for pause in (0, 7.5, 2.5):  # an attempt at a silent Vault takes 3 s, which do not count
                app.do(f"later {pause}")
                assert app.ask() == token
                attempts.append(vault.line.attempts)
        first, second, third, fourth = attempts
        assert first < second == third < fourth
        newer = vault.put(ACCOUNT)
        app.do("later 10")
        assert app.ask() == newer


@every_app
def test_an_app_reads_every_ten_seconds_in_the_last_minute_of_a_token(command: list[str], vault: Vault) -> None:
    first = vault.put(ACCOUNT, remaining=130)
    with running(command, vault, ACCOUNT) as app:
        assert app.ask() == first
        app.do("later 71")
        second = vault.put(ACCOUNT, remaining=120)
        assert app.ask() == second
        third = vault.put(ACCOUNT)
        app.do("later 10")
        assert app.ask() == third


@every_app
def test_an_app_sends_no_token_after_its_end(command: list[str], vault: Vault) -> None:
    expiring = vault.put(ACCOUNT, remaining=100)
    with running(command, vault, ACCOUNT) as app:
        assert app.ask() == expiring
        app.do("later 70")
        assert app.ask() == expiring
        vault.delete(ACCOUNT)
        app.do("later 31")
        assert app.ask() is None, "Vault has none"
        with vault.line.broken("cut"):
            app.do("later 10")
            assert app.ask() is None, "Vault is away"
        vault.put(ACCOUNT, remaining=110)
        app.do("later 10")
        assert app.ask() is None, "the one in Vault has expired too"
        living = vault.put(ACCOUNT)
        app.do("later 10")
        assert app.ask() == living


@every_app
def test_an_app_tries_again_with_another_token_and_not_with_the_same(command: list[str], vault: Vault) -> None:
    token = vault.put(ACCOUNT)
    with running(command, vault, ACCOUNT) as app:
        assert app.ask() == token
        assert app.do(f"refused {token}") == {"result": False}
        with vault.line.broken("cut"):
            assert app.do(f"refused {token}") == {"result": False}
        newer = vault.put(ACCOUNT)
        assert app.do(f"refused {token}") == {"result": True}
        assert app.do(f"refused {token}") == {"result": True}, "another request of the same app may have been first"
        assert app.ask() == newer
