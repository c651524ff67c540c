"""--check: what has to be right before the daemon can do its work, a line each. No credential is sent to Sentinel."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    InvalidAccountError,
    RefreshError,
)
from worker.mint import Domains
from worker.refresh import Accounts, StoredTokens

_LARGEST_SKEW = timedelta(minutes=1)
_NEXT_TO_NOTHING = 2.0
"""Seconds. A server tells whole ones, and what it told has travelled."""
_FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class Line:
    check: str
    ok: bool
    detail: str
    remedy: str | None = None


class Right(Protocol):
    @property
    def path(self) -> str: ...
    def policy_line(self) -> str: ...


class Granted(Protocol):
    @property
    def right(self) -> Right: ...
    @property
    def missing(self) -> Sequence[str]: ...
    @property
    def excess(self) -> Sequence[str]: ...


class Login(Protocol):
    @property
    def method(self) -> str: ...
    def keep_alive(self) -> float: ...


class Vault(Protocol):
    def health(self) -> str: ...
    def now(self) -> datetime: ...


class Preflight:
    def __init__(
        self,
        *,
        vault: Vault,
        login: Login,
        engines: Mapping[str, Callable[[], str]],
        granted: Callable[[], Iterable[Granted]],
        accounts: Accounts,
        tokens: StoredTokens,
        domains: Domains,
        reach: Callable[[str, timedelta], datetime | None],
        timeout: timedelta,
        mend_account: Callable[[str, str], str],
    ) -> None:
        """
        :param engines: by setting, what is at the mount that it names; RefreshError if that is of no use.
        :param mend_account: the command that mends an account's field.
        :param granted: the login's rights at each path that matters.
        :param reach: connects to a Sentinel host without asking for a token; its clock. RefreshError if it cannot.
        """
        self._vault = vault
        self._login = login
        self._engines = engines
        self._granted = granted
        self._accounts = accounts
        self._tokens = tokens
        self._domains = domains
        self._reach = reach
        self._timeout = timeout
        self._mend_account = mend_account

    def run(self) -> Iterator[Line]:
        """The lines, each as soon as it is known. What makes the rest pointless ends them."""
        engines = (partial(self._engine, setting) for setting in self._engines)
        steps: list[Callable[[], Line]] = [self._health, self._logged_in, *engines]
        for step in steps:
            line = step()
            yield line
            if not line.ok:
                return
        yield from self._rights()
        yield self._clock("vault", self._vault.now())
        try:
            names = sorted(self._accounts.names())
        except RefreshError as error:
            yield Line("accounts", ok=False, detail=str(error), remedy=_of_vault(error))
            return
        yield Line(
            "accounts",
            ok=bool(names),
            detail=f"{len(names)} found",
            remedy=None
            if names
            else "put an account below accounts.prefix, or mend accounts.mount and accounts.prefix",
        )
        yield from self._each_account(names)

    def _health(self) -> Line:
        try:
            return Line("vault", ok=True, detail=self._vault.health())
        except RefreshError as error:
            remedy = error.remedy or "see vault.address, vault.ca_cert and Vault itself"
            return Line("vault", ok=False, detail=str(error), remedy=remedy)

    def _logged_in(self) -> Line:
        try:
            self._login.keep_alive()
        except RefreshError as error:
            remedy = error.remedy or "see vault.auth_method and its settings"
            return Line("login", ok=False, detail=str(error), remedy=remedy)
        return Line("login", ok=True, detail=f"by {self._login.method}")

    def _engine(self, setting: str) -> Line:
        try:
            return Line(setting, ok=True, detail=self._engines[setting]())
        except RefreshError as error:
            remedy = f"set {setting} to such a mount; a new one: vault secrets enable -path=NAME -version=2 kv"
            if error.status == _FORBIDDEN:
                remedy = f"set {setting} to a mount there is, and give the login config/policies/worker.hcl for it"
            return Line(setting, ok=False, detail=str(error), remedy=remedy)

    def _rights(self) -> Iterator[Line]:
        try:
            for granted in self._granted():
                right = granted.right
                excess = f"; warning: it may also {', '.join(granted.excess)}" if granted.excess else ""
                yield Line(
                    f"right {right.path}",
                    ok=not granted.missing,
                    detail=f"missing: {', '.join(granted.missing)}" if granted.missing else f"granted{excess}",
                    remedy=f"add to the policy: {right.policy_line()}" if granted.missing else None,
                )
        except RefreshError as error:
            remedy = 'add to the policy: path "sys/capabilities-self" { capabilities = ["update"] }'
            forbidden = error.status == _FORBIDDEN
            yield Line("rights", ok=False, detail=str(error), remedy=remedy if forbidden else _of_vault(error))

    def _each_account(self, names: Iterable[str]) -> Iterator[Line]:
        hosts: dict[str, list[str]] = {}
        for name in names:
            try:
                self._tokens.read(name)
                account = self._accounts.read(name)
                host = self._domains.sentinel_host(account, self._timeout)
            except AccountDisabledError:
                yield Line(f"account {name}", ok=True, detail="disabled")
            except AccountGoneError as error:  # a LIST holds deleted ones too
                yield Line(f"account {name}", ok=True, detail=f"removed: {error}")
            except RefreshError as error:
                yield Line(f"account {name}", ok=False, detail=str(error), remedy=self._remedy(name, error))
            else:
                hosts.setdefault(host, []).append(name)
                # whether the client_secret is right, only Sentinel could say
                unread = f"; not read: {', '.join(account.unread)}" if account.unread else ""
                detail = f"well-formed, at {host}; its secret is not tried{unread}"
                yield Line(f"account {name}", ok=True, detail=detail)
        for host in sorted(hosts):
            yield from self._host(host)

    def _remedy(self, name: str, error: RefreshError) -> str | None:
        match error:
            case RefreshError(remedy=str()):
                return error.remedy
            case InvalidAccountError():
                field = re.match(r"\w+(?=: )", str(error))
                return self._mend_account(name, field[0]) if field else "give it another name"
        return _of_vault(error)

    def _host(self, host: str) -> Iterator[Line]:
        try:
            now = self._reach(host, self._timeout)
        except RefreshError as error:
            remedy = "see the network's way out to it, HTTPS_PROXY and sentinel.ca_cert"
            yield Line(f"sentinel {host}", ok=False, detail=str(error), remedy=remedy)
        else:
            yield Line(f"sentinel {host}", ok=True, detail="reachable")
            if now:
                yield self._clock(host, now)

    def _clock(self, against: str, now: datetime) -> Line:
        ahead = (datetime.now(UTC) - now).total_seconds()
        detail = f"this machine's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} it"
        if abs(ahead) < _NEXT_TO_NOTHING:
            detail = "this machine's is the same, to a second or two"
        ok = abs(ahead) <= _LARGEST_SKEW.total_seconds()
        remedy = None if ok else "set this machine's clock, for example by NTP"
        return Line(f"clock {against}", ok=ok, detail=detail, remedy=remedy)


def _of_vault(error: RefreshError) -> str:
    if error.status == _FORBIDDEN:
        return "add the rights that are missing above to the policy; if none is, another policy denies this path"
    return "see Vault itself"
