"""The part of --check that looks at each account, at its token and its Sentinel host; and the form of its lines."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlsplit

from worker import net
from worker.clocks import ClockComparison
from worker.core.account import Absence, Account
from worker.core.appjwt import Expected, other_client_id
from worker.core.errors import InvalidAccountError, RefreshError
from worker.core.outcome import State
from worker.core.status import NO_TOKEN, AccountStatus, stored_status
from worker.publish import StoredTokens
from worker.refresh import Accounts
from worker.schedule.dispatch import Limits, Pool

FORBIDDEN = 403
_ANOTHER_APP = (
    "after a change of the account's client_id: --refresh {}; else another installation writes below this "
    "tokens.prefix: give it another one"
)
_MAX_NAMES = 3
"""Of accounts that fail alike."""
_MAX_CAUSES = 3


@dataclass(frozen=True, slots=True)
class CheckResult:
    check: str
    ok: bool
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class _AccountCheck:
    """One account."""

    result: CheckResult
    host: str | None = None
    """Its Sentinel host; None = it has none to be reached."""
    status: AccountStatus | None = None
    """None = what is stored could not be read."""


class CheckedAccounts(Accounts, Protocol):
    @property
    def unlisted_folders(self) -> Mapping[str, RefreshError]:
        """Return the folders whose accounts `names` lacks, and why."""

    def fix_command(self, name: str, field: str) -> str:
        """Return the command that sets a field of an account's secret."""


class AccountChecks:
    def __init__(
        self,
        *,
        accounts: CheckedAccounts,
        tokens: StoredTokens,
        host_of: Callable[[Account], str],
        reach: Callable[[str], datetime | None],
        limits: Limits,
    ) -> None:
        """
        :param host_of: looks an account's Sentinel host up; RefreshError.
        :param reach: connects to a Sentinel host without asking for a token; its clock. RefreshError if it cannot.
        :param limits: accounts, and hosts, at a time and in a second.
        """
        self._accounts = accounts
        self._tokens = tokens
        self._host_of = host_of
        self._reach = reach
        self._limits = limits
        self._clocks = ClockComparison()
        self._statuses: list[AccountStatus] = []

    def run(self, names: Sequence[str], pool: Pool, progress: Callable[[int, int], object]) -> Iterator[CheckResult]:
        """Yield the results of all accounts and of their hosts."""
        found: list[_AccountCheck] = []
        progress(0, len(names))
        for each in pool.map_unordered(self._account, names, self._limits):
            found.append(each)
            progress(len(found), len(names))
        yield from _group_failures(sorted((each.result for each in found), key=lambda result: result.check))
        hosts = {each.host for each in found if each.host}
        reached = pool.map_unordered(self._host, hosts, self._limits)
        for results in sorted(reached, key=lambda results: results[-1].check.partition(" ")[2]):
            yield from results
        self._statuses = [each.status for each in found if each.status]

    def clock(self, against: str, now: datetime) -> Iterator[CheckResult]:
        if agreement := self._clocks.compare(against, now, datetime.now(UTC)):
            yield CheckResult(f"clock {against}", ok=True, detail=agreement)

    def summary(self) -> Iterator[CheckResult]:
        """Yield a result for each clock that differs from this machine's, and one on the tokens in Vault."""
        for other, detail, remedy in self._clocks.differences():
            yield CheckResult(f"clock {other}", ok=False, detail=detail, remedy=remedy)
        if self._statuses:
            yield _check_tokens(self._statuses)

    def _account(self, name: str) -> "_AccountCheck":
        check, status = f"account {name}", None
        try:
            account = self._accounts.read(name)
            if isinstance(account, Absence):  # a LIST holds removed ones too
                return _AccountCheck(CheckResult(check, ok=True, detail=account))
            stored = self._tokens.read(name)
            status = stored_status(name, stored)
            host = self._host_of(account)
        except RefreshError as error:
            return _AccountCheck(failure(check, error, self._remedy(name, error)), status=status)
        raw = stored.raw.get_secret_value() if stored.raw else ""
        if other := other_client_id(raw, Expected.of(account), stored.now):
            detail = f"the stored token is of client_id {other}, and the account's is {account.client_id}"
            return _AccountCheck(
                CheckResult(check, ok=False, detail=detail, remedy=_ANOTHER_APP.format(name)), host, status
            )
        # whether the client_secret is right, only Sentinel could say
        unknown = f"; not read: {', '.join(account.unknown_fields)}" if account.unknown_fields else ""
        detail = f"valid; host {host}; client_secret not verified{unknown}"
        return _AccountCheck(CheckResult(check, ok=True, detail=detail), host, status)

    def _remedy(self, name: str, error: RefreshError) -> str:
        if not isinstance(error, InvalidAccountError):
            return vault_remedy(error)
        field = re.match(r"\w+(?=: )", str(error))
        return self._accounts.fix_command(name, field[0]) if field else "give it another name"

    def _host(self, host: str) -> list[CheckResult]:
        proxy = check_proxy(f"https://{host}/")
        results = [proxy] if proxy else []
        if proxy and not proxy.ok:
            return results
        try:
            now = self._reach(host)
        except RefreshError as error:
            remedy = "see the network's way out to it, HTTPS_PROXY and sentinel.ca_cert"
            return [*results, failure(f"sentinel {host}", error, remedy)]
        results.append(CheckResult(f"sentinel {host}", ok=True, detail="reachable"))
        return [*results, *self.clock(host, now)] if now else results


def check_proxy(url: str) -> CheckResult | None:
    """Name the proxy that leads to a host; None = there is none."""
    check = f"proxy {urlsplit(url).netloc}"
    try:
        proxy = net.proxy_for(url)
    except net.ExchangeError as error:
        return CheckResult(check, ok=False, detail=error.detail, remedy=error.remedy)
    return CheckResult(check, ok=True, detail=proxy) if proxy else None


def _group_failures(results: Iterable[CheckResult]) -> Iterator[CheckResult]:
    """Yield one result for all accounts that fail alike, as where the Domain API is out of reach."""
    alike: dict[tuple[str, str | None], list[CheckResult]] = {}
    for result in results:
        if result.ok:
            yield result
        else:
            alike.setdefault((result.detail, result.remedy), []).append(result)
    for same in alike.values():
        names = [result.check.partition(" ")[2] for result in same[:_MAX_NAMES]]
        more = f" and {len(same) - _MAX_NAMES} more" if len(same) > _MAX_NAMES else ""
        yield replace(same[0], check=f"account{'s' if len(same) > 1 else ''} {', '.join(names)}{more}")


def _check_tokens(statuses: Sequence[AccountStatus]) -> CheckResult:
    """Return the result on the tokens in Vault. It does not fail: only the worker obtains those that are missing."""
    without = [status for status in statuses if not status.is_served]
    failing = [status for status in statuses if status.is_served and status.state is State.FAILING]
    if not without and not failing:
        return CheckResult("tokens", ok=True, detail=f"all {len(statuses)} live; no client_secret was tried")
    causes = Counter(status.last_error or "" for status in (*without, *failing))
    if [*causes] == [NO_TOKEN]:
        detail = f"{len(without)} of {len(statuses)} accounts have no token yet; no client_secret was tried"
        return CheckResult("tokens", ok=True, detail=detail)
    latest = "; ".join(f"{count}x {cause}" for cause, count in causes.most_common(_MAX_CAUSES))
    return CheckResult(
        "tokens",
        ok=True,
        detail=f"warning: {len(without)} of {len(statuses)} accounts without a live token, "
        f"{len(failing)} failing with one; latest attempts: {latest}; no client_secret was tried",
        remedy="fix what they failed by, then: --refresh-all --expires-within 15m",
    )


def failure(check: str, error: RefreshError, remedy: str) -> CheckResult:
    """Return the result of an error, with the error's remedy if it has one."""
    return CheckResult(check, ok=False, detail=error.detail, remedy=error.remedy or remedy)


def vault_remedy(error: RefreshError) -> str:
    if error.status == FORBIDDEN:
        return "add the rights that are missing above to the policy; if none is, another policy denies this path"
    return "see Vault itself"
