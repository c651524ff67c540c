"""--check: a line per check, and the error, its cause and the remedy for each that failed."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from tests.builders import HOUR, ISSUED, make_account, make_token, stored_secret
from worker.check import Preflight
from worker.check_accounts import AccountChecks, CheckResult
from worker.core.account import Absence, Account
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)
from worker.core.unchecked import StoredSecret
from worker.schedule.dispatch import Limits, Pool

HOST = "va.sentinel.liveperson.net"

T = TypeVar("T")


def given(found: T | RefreshError) -> T:
    if isinstance(found, RefreshError):
        raise found
    return found


def forbidden(stage: Stage = Stage.VAULT) -> RefreshError:
    return RefreshError(stage, Kind.PERMANENT, "status 403, permission denied", status=403)


def away(stage: Stage = Stage.VAULT) -> RefreshError:
    return RefreshError(stage, Kind.TRANSIENT, "connection refused")


@dataclass(frozen=True)
class AccessRight:
    path: str = "secret/data/x/*"

    def policy_line(self) -> str:
        return f"the line of {self.path}"


@dataclass(frozen=True)
class RightCheck:
    right: AccessRight = field(default_factory=AccessRight)
    missing: Sequence[str] = ()
    excess: Sequence[str] = ()


@dataclass
class Vault:
    """With one account, `a`, or what is wrong instead."""

    address = "https://vault.example:8200"
    method = "approle"
    mount = "secret"
    revocable = True
    uses: float = math.inf
    health_is: str | RefreshError = "version 1, active"
    namespace: str | None = None
    """Error of the namespace."""
    logged_in: float | RefreshError = 0.0
    kv_version: int | RefreshError = 2
    retained: timedelta | RefreshError | None = None
    rights: Sequence[RightCheck] | RefreshError = (RightCheck(),)
    listed: frozenset[str] | RefreshError = frozenset({"a"})
    unlisted_folders: dict[str, RefreshError] = field(default_factory=dict)
    account: Account | Absence | RefreshError = field(default_factory=make_account)
    skew: timedelta = timedelta()
    """Lead of its clock."""

    def health(self) -> str:
        return given(self.health_is)

    def namespace_fault(self) -> str | None:
        return self.namespace

    def version(self) -> int:
        return given(self.kv_version)

    def retention(self) -> timedelta | None:
        return given(self.retained)

    @property
    def login(self) -> "Vault":
        return self

    def keep_alive(self) -> float:
        return given(self.logged_in)

    def logins_for(self, requests: float) -> float:
        return requests / (self.uses - 3)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def names(self) -> frozenset[str]:
        return given(self.listed)

    def read(self, name: str) -> Account | Absence:
        del name
        if isinstance(self.account, RefreshError):
            raise self.account
        return self.account

    def path(self, name: str) -> str:
        return f"x/{name}"

    def fix_command(self, name: str, field: str) -> str:
        return f"mend {field} of {name}"


def with_remedy(error: RefreshError, remedy: str) -> RefreshError:
    return RefreshError(error.stage, error.kind, str(error), status=error.status, remedy=remedy)


@dataclass
class Shelf:
    """Tokens."""

    stored: StoredSecret | RefreshError = field(default_factory=stored_secret)

    def read(self, name: str) -> StoredSecret:
        del name
        return given(self.stored)


@dataclass
class LivePerson:
    host: str | RefreshError = HOST
    sentinel: datetime | RefreshError | None = None
    reached: list[str] = field(default_factory=list)

    def host_of(self, account: Account) -> str:
        del account
        return given(self.host)

    def reach(self, host: str) -> datetime | None:
        self.reached.append(host)
        return given(self.sentinel)


def check(
    vault: Vault | None = None,
    shelf: Shelf | None = None,
    liveperson: LivePerson | None = None,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> list[CheckResult]:
    vault, liveperson = vault or Vault(), liveperson or LivePerson()
    preflight = Preflight(
        vault=vault,
        mounts={"accounts.mount": vault, "tokens.mount": vault},
        granted=lambda: given(vault.rights),
        accounts=vault,
        account_checks=AccountChecks(
            accounts=vault,
            tokens=shelf or Shelf(),
            host_of=liveperson.host_of,
            reach=liveperson.reach,
            limits=Limits(max_in_flight=8, max_per_second=1000.0),
        ),
        domain_api="https://domains.example",
        retention_command=lambda: "vault write x",
        requests_per_hour=lambda accounts: 100.0 * accounts,
    )
    with Pool(8) as pool:
        return list(preflight.run(pool, progress))


def failed(lines: list[CheckResult]) -> CheckResult:
    """Return the one line that failed."""
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
            "tokens.mount",
            "tokens.mount delete_version_after",
            "right secret/data/x/*",
            "clock vault",
            "accounts",
            "account a",
            f"sentinel {HOST}",
            "tokens",
        )
    ]


@pytest.mark.parametrize(
    ("vault", "last", "remedy"),
    [
        (Vault(health_is=away()), "vault", "vault.address"),
        (Vault(logged_in=away()), "login", "vault.auth_method"),
        (Vault(logged_in=with_remedy(forbidden(), "see vault.role")), "login", "see vault.role"),
        (Vault(health_is=with_remedy(away(), "vault operator unseal")), "vault", "vault operator unseal"),
        (Vault(kv_version=away()), "accounts.mount", "vault secrets enable -path=NAME -version=2 kv"),
        (Vault(kv_version=forbidden()), "accounts.mount", "config/policies/worker.hcl"),
        (Vault(listed=forbidden()), "accounts", "add the rights that are missing above"),
        (Vault(listed=away()), "accounts", "see Vault itself"),
        (Vault(listed=with_remedy(away(), "raise the quota")), "accounts", "raise the quota"),
    ],
)
def test_what_makes_the_rest_pointless_ends_it(vault: Vault, last: str, remedy: str) -> None:
    lines = check(vault)
    assert failed(lines) is lines[-1]
    assert lines[-1].check == last
    assert remedy in str(lines[-1].remedy)


def test_a_namespace_that_is_ignored_fails_and_the_rest_is_told_too() -> None:
    lines = check(Vault(namespace="it is ignored"))
    assert failed(lines) == CheckResult("vault.namespace", False, "it is ignored", "unset vault.namespace")
    assert lines[1] == failed(lines)
    assert lines[-2].check == f"sentinel {HOST}"


@pytest.mark.parametrize(
    ("retained", "ok", "detail", "remedy"),
    [
        (None, True, "unset: a token is kept until it is replaced", None),
        (timedelta(seconds=10), False, "10 s: Vault deletes tokens before they expire", "vault write x"),
        (timedelta(minutes=59), False, "3540 s: Vault deletes tokens before they expire", "vault write x"),
        (timedelta(hours=1), True, "3600 s; warning: some agents take such tokens for deleted: vault write x", None),
        (forbidden(), True, "cannot be read: status 403, permission denied", None),
        (away(), True, "cannot be read: connection refused", None),
    ],
)
def test_a_mount_that_deletes_tokens_is_told_with_the_command_that_stops_it(
    retained: timedelta | RefreshError | None,
    ok: bool,  # noqa: FBT001 - a parameter
    detail: str,
    remedy: str | None,
) -> None:
    lines = check(Vault(retained=retained))
    (line,) = [line for line in lines if line.check == "tokens.mount delete_version_after"]
    assert line == CheckResult("tokens.mount delete_version_after", ok, detail, remedy)
    assert lines[-2].check == f"sentinel {HOST}"


def test_a_missing_right_is_named_with_the_line_that_the_policy_needs() -> None:
    line = failed(check(Vault(rights=[RightCheck(), RightCheck(AccessRight("b/*"), missing=["create", "read"])])))
    assert line == CheckResult("right b/*", False, "missing: create, read", "add to the policy: the line of b/*")


def test_a_right_too_many_is_a_warning_and_nothing_fails() -> None:
    lines = check(Vault(rights=[RightCheck(excess=["delete", "sudo"])]))
    line = next(line for line in lines if line.check.startswith("right"))
    assert line == CheckResult("right secret/data/x/*", True, "granted; warning: it may also delete, sudo")
    assert all(line.ok for line in lines)


def test_rights_that_cannot_be_asked_for_are_told_and_the_rest_goes_on() -> None:
    lines = check(Vault(rights=forbidden()))
    remedy = 'add to the policy: path "sys/capabilities-self" { capabilities = ["update"] }'
    assert failed(lines) == CheckResult("rights", False, "status 403, permission denied", remedy)
    assert lines[-2].check == f"sentinel {HOST}"
    assert failed(check(Vault(rights=away()))).remedy == "see Vault itself"


def test_no_account_at_all_is_a_failure_for_there_is_nothing_to_do() -> None:
    line = failed(check(Vault(listed=frozenset())))
    assert (line.check, line.detail) == ("accounts", "0 found")
    assert "accounts.prefix" in str(line.remedy)


@pytest.mark.parametrize(
    ("absence", "detail"),
    [
        (Absence.DISABLED, "disabled"),
        (Absence.REMOVED, "removed"),
    ],
)
def test_an_account_that_is_kept_out_or_deleted_is_no_failure_and_no_host_is_asked(
    absence: Absence, detail: str
) -> None:
    liveperson, given_back = LivePerson(), Shelf(UnmanagedSecretError("not ours"))
    assert check(Vault(account=absence), given_back, liveperson)[-1] == CheckResult("account a", True, detail)
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


def test_a_unmanaged_secret_is_told_with_the_command_that_hands_it_over() -> None:
    line = failed(check(shelf=Shelf(UnmanagedSecretError("not ours", "vault kv metadata patch x"))))
    assert line == CheckResult("account a", False, "not ours", "vault kv metadata patch x")


def test_fields_of_an_account_that_nobody_reads_are_named_for_one_may_be_misspelt() -> None:
    lines = check(Vault(account=replace(make_account(), unknown_fields=("enable", "note"))))
    (line,) = [line for line in lines if line.check == "account a"]
    assert (line.ok, line.detail) == (True, f"valid; host {HOST}; client_secret not verified; not read: enable, note")


def test_a_host_that_is_not_found_or_not_allowed_is_the_accounts_failure() -> None:
    refused = with_remedy(RefreshError(Stage.DOMAIN, Kind.PERMANENT, "which is not allowed"), "add it")
    liveperson = LivePerson(host=refused)
    line = failed(check(liveperson=liveperson))
    assert (line.check, line.detail, line.remedy) == ("account a", "which is not allowed", "add it")
    assert liveperson.reached == []


PROXY = "http://proxy.invalid:3128"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set a proxy for every host, with credentials in its URL."""
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:something@proxy.invalid:3128")
    return monkeypatch


def proxies(lines: list[CheckResult]) -> list[CheckResult]:
    return [line for line in lines if line.check.startswith("proxy ")]


def test_the_proxy_to_each_host_is_named_without_its_password(proxy: pytest.MonkeyPatch) -> None:
    hosts = ("vault.example:8200", "domains.example", HOST)
    lines = check()
    assert proxies(lines) == [CheckResult(f"proxy {host}", True, PROXY) for host in hosts]
    assert [line.check for line in lines if HOST in line.check] == [f"proxy {HOST}", f"sentinel {HOST}"]
    proxy.setenv("NO_PROXY", "domains.example")
    assert proxies(check()) == [CheckResult(f"proxy {host}", True, PROXY) for host in (hosts[0], HOST)]


def test_a_proxy_that_cannot_be_used_is_a_line_with_its_remedy_and_nothing_is_tried_through_it(
    proxy: pytest.MonkeyPatch,
) -> None:
    proxy.setenv("HTTPS_PROXY", "socks5://someone:something@proxy.invalid:1080")
    (line,) = check()
    assert (line.check, line.ok) == ("proxy vault.example:8200", False)
    assert line.detail.endswith(": HTTPS_PROXY or ALL_PROXY names a proxy that speaks socks5, which is not supported")
    assert line.remedy == "set HTTPS_PROXY to an http:// address, or add the host to NO_PROXY"
    proxy.setenv("NO_PROXY", "vault.example,domains.example")
    liveperson = LivePerson()
    lines = check(liveperson=liveperson)
    assert failed(lines) == lines[-2]
    assert (lines[-2].check, lines[-2].remedy) == (f"proxy {HOST}", line.remedy)
    assert liveperson.reached == []


def test_a_folder_whose_accounts_are_not_found_is_told_with_what_to_do() -> None:
    deep = with_remedy(RefreshError(Stage.CREDENTIALS, Kind.PERMANENT, "it is too deep"), "move them up")
    lines = check(Vault(unlisted_folders={"x/deep": deep, "x/denied": forbidden()}))
    first, second = [line for line in lines if not line.ok]
    assert first == CheckResult("folder x/deep", False, "it is too deep", "move them up")
    assert (second.check, second.detail) == ("folder x/denied", "status 403, permission denied")
    assert "add the rights" in str(second.remedy)
    assert lines[-2].check == f"sentinel {HOST}"


def test_how_far_it_is_is_told_after_each_account() -> None:
    calls: list[tuple[int, int]] = []
    check(Vault(listed=frozenset("abc")), progress=lambda *numbers: calls.append(numbers))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_each_host_is_reached_once_for_all_of_its_accounts() -> None:
    liveperson = LivePerson(sentinel=datetime.now(UTC))
    lines = check(Vault(listed=frozenset("abc")), liveperson=liveperson)
    accounts = ["account a", "account b", "account c"]
    assert [line.check for line in lines[-6:]] == [*accounts, f"sentinel {HOST}", f"clock {HOST}", "tokens"]
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


def test_a_live_token_of_another_client_id_is_told() -> None:
    account = make_account()
    for azp, now, ok in (("theirs", ISSUED, False), (account.client_id, ISSUED, True), ("theirs", ISSUED + HOUR, True)):
        stored = stored_secret(make_token(aud=account.account_id, azp=azp), now=now)
        lines = {line.check: line for line in check(Vault(account=account), Shelf(stored))}
        assert lines["account a"].ok is ok
        assert ok or "client_id theirs" in lines["account a"].detail


def test_the_clock_that_stands_alone_is_named() -> None:
    off, now = timedelta(hours=-2), datetime.now(UTC)
    line = failed(check(Vault(skew=off), liveperson=LivePerson(sentinel=now)))
    remedy = f"set the clock of vault, which alone differs ({HOST} and this machine agree), for example by NTP"
    assert (line.check, line.remedy) == ("clock vault", remedy)
    line = failed(check(liveperson=LivePerson(sentinel=now + off)))
    remedy = f"set the clock of {HOST}, which alone differs (vault and this machine agree), for example by NTP"
    assert (line.check, line.remedy) == (f"clock {HOST}", remedy)
    lines = check(Vault(skew=off), liveperson=LivePerson(sentinel=now + off))
    wrong = [(line.check, line.remedy) for line in lines if not line.ok]
    remedy = "set this machine's clock, which alone differs ({} and {} agree), for example by NTP"
    assert wrong == [("clock vault", remedy.format(HOST, "vault")), (f"clock {HOST}", remedy.format("vault", HOST))]
    lines = check(Vault(skew=off), liveperson=LivePerson(sentinel=now - off))
    assert {line.remedy for line in lines if not line.ok} == {"set the clock that is wrong, for example by NTP"}


@pytest.mark.parametrize("skew", [timedelta(seconds=50), timedelta(seconds=-50)])
def test_a_clock_that_is_less_than_a_minute_off_will_do(skew: timedelta) -> None:
    assert all(line.ok for line in check(Vault(skew=skew)))


def test_a_login_that_may_be_used_a_few_times_only_is_told_with_what_it_costs() -> None:
    assert "login uses" not in [line.check for line in check()]
    (line,) = [line for line in check(Vault(uses=25)) if line.check == "login uses"]
    detail = "warning: 25 per login (token_num_uses): about 5 logins an hour, each of which may use up a secret_id"
    assert (line.ok, line.detail) == (True, detail)


def test_a_given_token_that_may_be_used_a_few_times_only_cannot_last() -> None:
    given_token = Vault(uses=25)
    given_token.revocable = False
    line = failed(check(given_token))
    assert (line.check, line.detail) == ("login uses", "25 left, of which about 100 an hour are needed")
    assert "without a limit of uses" in str(line.remedy)


# What the tokens in Vault are like


def test_tokens_that_live_are_counted() -> None:
    line = check(Vault(listed=frozenset("abc")), Shelf(stored_secret(make_token())))[-1]
    assert line == CheckResult("tokens", True, "all 3 live; no client_secret was tried")


def test_accounts_without_a_live_token_are_a_warning_with_what_their_latest_attempts_failed_by() -> None:
    refused = {"state": "failing", "last_error": "sentinel: va answers 401", "failing_since": "2026-12-01T00:00:00Z"}
    line = check(Vault(listed=frozenset("abc")), Shelf(stored_secret(custom_metadata=refused)))[-1]
    text = "3 of 3 accounts without a live token, 0 failing with one; latest attempts: 3x sentinel: va answers 401;"
    assert (line.check, line.ok) == ("tokens", True)
    assert line.detail == f"warning: {text} no client_secret was tried"
    still = check(Vault(listed=frozenset("ab")), Shelf(stored_secret(make_token(), custom_metadata=refused)))[-1]
    assert "0 of 2 accounts without a live token, 2 failing with one; latest attempts: 2x sentinel" in still.detail
    assert "--refresh-all --expires-within 15m" in str(line.remedy)


def test_accounts_that_no_attempt_was_made_for_yet_are_no_warning() -> None:
    line = check(Vault(listed=frozenset("ab")))[-1]
    assert line == CheckResult("tokens", True, "2 of 2 accounts have no token yet; no client_secret was tried")


def test_many_accounts_that_fail_alike_are_one_line() -> None:
    lines = check(Vault(listed=frozenset("abcde")), liveperson=LivePerson(host=away(Stage.DOMAIN)))
    line = failed(lines)
    assert (line.check, line.detail) == ("accounts a, b, c and 2 more", "connection refused")
    assert lines[-1].check == "tokens"
