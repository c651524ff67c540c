"""--check: a line per check, and each that failed says what, why, and what mends it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from tests.builders import make_account
from worker.check import Line, Preflight
from worker.core.account import Account
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.unchecked import Stored

HOST = "va.sentinel.liveperson.net"
NOTHING = Stored(0, None, None, None, marked=False, kept_for=timedelta(), now=datetime.now(UTC))

Thing = TypeVar("Thing")


def given(found: Thing | RefreshError) -> Thing:
    if isinstance(found, RefreshError):
        raise found
    return found


def forbidden(stage: Stage = Stage.VAULT) -> RefreshError:
    return RefreshError(stage, Kind.LASTING, "status 403, permission denied", status=403)


def away(stage: Stage = Stage.VAULT) -> RefreshError:
    return RefreshError(stage, Kind.TRANSIENT, "connection refused")


@dataclass(frozen=True)
class Right:
    path: str = "secret/data/x/*"

    def policy_line(self) -> str:
        return f"the line of {self.path}"


@dataclass(frozen=True)
class Granted:
    right: Right = field(default_factory=Right)
    missing: Sequence[str] = ()
    excess: Sequence[str] = ()


@dataclass
class Vault:
    """With one account, `a`, or what is wrong instead."""

    method = "approle"
    health_is: str | RefreshError = "version 1, active"
    login: float | RefreshError = 0.0
    engine: str | RefreshError = "secret is KV version 2"
    rights: Sequence[Granted] | RefreshError = (Granted(),)
    listed: frozenset[str] | RefreshError = frozenset({"a"})
    account: Account | RefreshError = field(default_factory=make_account)
    skew: timedelta = timedelta()
    """How far its clock is ahead."""

    def health(self) -> str:
        return given(self.health_is)

    def keep_alive(self) -> float:
        return given(self.login)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def names(self) -> frozenset[str]:
        return given(self.listed)

    def read(self, name: str) -> Account:
        del name
        return given(self.account)


def with_remedy(error: RefreshError, remedy: str) -> RefreshError:
    error.remedy = remedy
    return error


@dataclass
class Shelf:
    """Tokens."""

    stored: Stored | RefreshError = NOTHING

    def read(self, name: str) -> Stored:
        del name
        return given(self.stored)


@dataclass
class LivePerson:
    host: str | RefreshError = HOST
    sentinel: datetime | RefreshError | None = None
    reached: list[str] = field(default_factory=list)

    def doubt(self, account: Account) -> None:
        raise NotImplementedError

    def sentinel_host(self, account: Account, timeout: timedelta, last: str | None = None) -> str:
        del account, timeout, last
        return given(self.host)

    def reach(self, host: str, timeout: timedelta) -> datetime | None:
        del timeout
        self.reached.append(host)
        return given(self.sentinel)


def check(vault: Vault | None = None, shelf: Shelf | None = None, liveperson: LivePerson | None = None) -> list[Line]:
    vault, liveperson = vault or Vault(), liveperson or LivePerson()
    preflight = Preflight(
        vault=vault,
        login=vault,
        engines={"accounts.mount": lambda: given(vault.engine)},
        granted=lambda: given(vault.rights),
        accounts=vault,
        tokens=shelf or Shelf(),
        domains=liveperson,
        reach=liveperson.reach,
        timeout=timedelta(seconds=1),
        mend_account=lambda name, field: f"mend {field} of {name}",
    )
    return list(preflight.run())


def failed(lines: list[Line]) -> Line:
    """The one line that failed."""
    (line,) = [line for line in lines if not line.ok]
    return line


def test_where_all_is_well_every_check_has_its_line_and_no_remedy() -> None:
    lines = check()
    assert [(line.check, line.ok, line.remedy) for line in lines] == [
        (name, True, None)
        for name in (
            "vault",
            "login",
            "accounts.mount",
            "right secret/data/x/*",
            "clock vault",
            "accounts",
            "account a",
            f"sentinel {HOST}",
        )
    ]


@pytest.mark.parametrize(
    ("vault", "last", "remedy"),
    [
        (Vault(health_is=away()), "vault", "vault.address"),
        (Vault(login=away()), "login", "vault.auth_method"),
        (Vault(login=with_remedy(forbidden(), "see vault.role")), "login", "see vault.role"),
        (Vault(health_is=with_remedy(away(), "vault operator unseal")), "vault", "vault operator unseal"),
        (Vault(engine=away()), "accounts.mount", "vault secrets enable -path=NAME -version=2 kv"),
        (Vault(engine=forbidden()), "accounts.mount", "config/policies/worker.hcl"),
        (Vault(listed=forbidden()), "accounts", "add the rights that are missing above"),
        (Vault(listed=away()), "accounts", "see Vault itself"),
    ],
)
def test_what_makes_the_rest_pointless_ends_it(vault: Vault, last: str, remedy: str) -> None:
    lines = check(vault)
    assert failed(lines) is lines[-1]
    assert lines[-1].check == last
    assert remedy in str(lines[-1].remedy)


def test_a_missing_right_is_named_with_the_line_that_the_policy_needs() -> None:
    line = failed(check(Vault(rights=[Granted(), Granted(Right("b/*"), missing=["create", "read"])])))
    assert line == Line("right b/*", False, "missing: create, read", "add to the policy: the line of b/*")


def test_a_right_too_many_is_a_warning_and_nothing_fails() -> None:
    lines = check(Vault(rights=[Granted(excess=["delete", "sudo"])]))
    line = next(line for line in lines if line.check.startswith("right"))
    assert line == Line("right secret/data/x/*", True, "granted; warning: it may also delete, sudo")
    assert all(line.ok for line in lines)


def test_rights_that_cannot_be_asked_for_are_told_and_the_rest_goes_on() -> None:
    lines = check(Vault(rights=forbidden()))
    remedy = 'add to the policy: path "sys/capabilities-self" { capabilities = ["update"] }'
    assert failed(lines) == Line("rights", False, "status 403, permission denied", remedy)
    assert lines[-1].check == f"sentinel {HOST}"
    assert failed(check(Vault(rights=away()))).remedy == "see Vault itself"


def test_no_account_at_all_is_a_failure_for_there_is_nothing_to_do() -> None:
    line = failed(check(Vault(listed=frozenset())))
    assert (line.check, line.detail) == ("accounts", "0 found")
    assert "accounts.prefix" in str(line.remedy)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (AccountDisabledError(), "disabled"),
        (AccountGoneError("there is no secret at x/a"), "removed: there is no secret at x/a"),
    ],
)
def test_an_account_that_is_kept_out_or_deleted_is_no_failure_and_no_host_is_asked(
    error: RefreshError, detail: str
) -> None:
    liveperson = LivePerson()
    assert check(Vault(account=error), liveperson=liveperson)[-1] == Line("account a", True, detail)
    assert liveperson.reached == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (InvalidAccountError("client_id: missing or empty"), "mend client_id of a"),
        (InvalidAccountError("'a b': an account's name holds"), "give it another name"),
        (forbidden(Stage.CREDENTIALS), "add the rights that are missing above"),
        (away(Stage.CREDENTIALS), "see Vault itself"),
    ],
)
def test_an_account_that_cannot_be_used_is_told_with_what_mends_it(error: RefreshError, remedy: str) -> None:
    line = failed(check(Vault(account=error)))
    assert (line.check, line.detail) == ("account a", str(error))
    assert remedy in str(line.remedy)


def test_a_foreign_secret_is_told_with_the_command_that_hands_it_over() -> None:
    line = failed(check(shelf=Shelf(ForeignSecretError("not ours", "vault kv metadata patch x"))))
    assert line == Line(
        "account a", False, "not ours; to hand it over: vault kv metadata patch x", "vault kv metadata patch x"
    )


def test_fields_of_an_account_that_nobody_reads_are_named_for_one_may_be_misspelt() -> None:
    lines = check(Vault(account=replace(make_account(), unread=("enable", "note"))))
    (line,) = [line for line in lines if line.check == "account a"]
    assert (line.ok, line.detail) == (True, f"well-formed, at {HOST}; its secret is not tried; not read: enable, note")


def test_a_host_that_is_not_found_or_not_allowed_is_the_accounts_failure() -> None:
    refused = with_remedy(RefreshError(Stage.DOMAIN, Kind.LASTING, "which is not allowed"), "add it")
    liveperson = LivePerson(host=refused)
    line = failed(check(liveperson=liveperson))
    assert (line.check, line.detail, line.remedy) == ("account a", "which is not allowed", "add it")
    assert liveperson.reached == []


def test_each_host_is_reached_once_for_all_of_its_accounts() -> None:
    liveperson = LivePerson(sentinel=datetime.now(UTC))
    lines = check(Vault(listed=frozenset("abc")), liveperson=liveperson)
    accounts = ["account a", "account b", "account c"]
    assert [line.check for line in lines[-5:]] == [*accounts, f"sentinel {HOST}", f"clock {HOST}"]
    assert liveperson.reached == [HOST]


def test_a_host_that_cannot_be_reached_is_told() -> None:
    line = failed(check(liveperson=LivePerson(sentinel=away(Stage.SENTINEL))))
    assert (line.check, line.detail) == (f"sentinel {HOST}", "connection refused")
    assert "HTTPS_PROXY" in str(line.remedy)


@pytest.mark.parametrize("skew", [timedelta(seconds=70), timedelta(seconds=-70)])
def test_a_clock_that_is_more_than_a_minute_off_is_told_against_vault_and_each_host(skew: timedelta) -> None:
    side = "behind" if skew > timedelta() else "ahead of"
    line = failed(check(Vault(skew=skew)))
    assert line.check == "clock vault"
    assert re.fullmatch(rf"this machine's is (69|7\d) s {side} it", line.detail)
    assert "NTP" in str(line.remedy)
    line = failed(check(liveperson=LivePerson(sentinel=datetime.now(UTC) + skew)))
    assert line.check == f"clock {HOST}"


@pytest.mark.parametrize("skew", [timedelta(seconds=50), timedelta(seconds=-50)])
def test_a_clock_that_is_less_than_a_minute_off_will_do(skew: timedelta) -> None:
    assert all(line.ok for line in check(Vault(skew=skew)))
