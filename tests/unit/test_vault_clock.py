"""VaultSession compares each answer's Date with its forecast; the transport is a fake one without a socket."""

import json
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime

import pytest
import requests
from pydantic import SecretStr
from requests.adapters import BaseAdapter

from tests.fakes.clock import Clock
from worker.vault.login import TokenLogin
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

_SELF = {"data": {"ttl": 0, "renewable": False, "num_uses": 0, "path": "auth/token/create"}}


class Vault(BaseAdapter):
    """Answers everything alike, by a clock that a test may set."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.skew = 0.0
        self.took = 0.0
        self.answers_late = False
        """Read the clock after `took`, not before."""
        self.wall = 0.0
        """Seconds by which this machine's wall clock was set."""
        self.jumps: list[tuple[float, bool]] = []

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, str(request.url)
        response._content = json.dumps(_SELF).encode()  # noqa: SLF001 - requests has no public way
        asked_at = self.clock.now()
        self.clock.advance(timedelta(seconds=self.took))
        date = (self.clock.now() if self.answers_late else asked_at) + timedelta(seconds=self.skew)
        response.headers["Date"] = format_datetime(date, usegmt=True)
        return response

    def measure(self, response: requests.Response, **_: object) -> None:
        """Set what requests would read off the real clock."""
        response.elapsed = timedelta(seconds=self.took)

    def close(self) -> None:
        pass


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Vault:
    vault = Vault(Clock())
    monkeypatch.setattr("worker.vault.session.time.time", lambda: vault.clock.now().timestamp() + vault.wall)
    return vault


@pytest.fixture
def ask(vault: Vault) -> Callable[[float], None]:
    http = requests.Session()
    http.mount("http://", vault)
    http.hooks["response"] = [vault.measure]
    session = VaultSession(
        "http://vault.invalid",
        TokenLogin(SecretStr("token")),
        http=http,
        namespace=None,
        timeout=timedelta(seconds=10),
        clock=vault.clock,
    )
    session.on_clock_jump = lambda jump, paused: vault.jumps.append((round(jump, 1), paused))

    def ask(after: float) -> None:
        vault.clock.advance(timedelta(seconds=after))
        session.call(Operation.LIST, "secret", "", lambda client: client.adapter.get("/v1/secret"))

    ask(0)
    return ask


@pytest.mark.parametrize("skew", [-1.0, 1.0])
def test_clocks_that_differ_by_a_second_are_no_jump(vault: Vault, ask: Callable[[float], None], skew: float) -> None:
    vault.skew = skew
    ask(60)
    vault.skew = 0
    ask(60)
    assert vault.jumps == []


@pytest.mark.parametrize("skew", [-100.0, -3.0, 3.0, 100.0])
def test_a_clock_of_vault_that_jumped_is_noticed_once_and_is_no_pause(
    vault: Vault, ask: Callable[[float], None], skew: float
) -> None:
    vault.skew = skew
    ask(60)
    ask(60)
    assert vault.jumps == [(skew, False)]


def test_a_pause_in_which_the_steady_clock_stood_still_is_one_for_the_wall_clock_went_on(
    vault: Vault, ask: Callable[[float], None]
) -> None:
    vault.skew, vault.wall = 100, 101
    ask(1)
    assert vault.jumps == [(100, True)]


def test_a_steady_clock_that_stepped_ahead_is_no_pause(vault: Vault, ask: Callable[[float], None]) -> None:
    vault.skew = vault.wall = -100
    ask(1)
    assert vault.jumps == [(-100, False)]


def test_a_wall_clock_that_was_set_is_no_jump(vault: Vault, ask: Callable[[float], None]) -> None:
    vault.wall = 86_400
    ask(1)
    assert vault.jumps == []


@pytest.mark.parametrize("late", [False, True])
def test_a_slow_answer_is_no_jump_nor_is_the_one_after_it(
    vault: Vault, ask: Callable[[float], None], *, late: bool
) -> None:
    vault.took, vault.answers_late = 30, late  # its Date may be as old, or new
    ask(1)
    vault.took = 0
    ask(1)
    ask(1)
    assert vault.jumps == []


def test_a_jump_larger_than_the_answer_was_slow_is_noticed(vault: Vault, ask: Callable[[float], None]) -> None:
    vault.took, vault.skew = 30, 70
    ask(1)
    assert vault.jumps == [(70, False)]  # the Date may be from before the 30 s
