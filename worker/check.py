"""--check: what has to be right before the daemon can do its work, a line each. No credential is sent to Sentinel."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from worker.core.errors import AccountDisabledError, RefreshError, Stage
from worker.refresh import Accounts, Domains, Tokens

_LARGEST_SKEW = timedelta(minutes=1)
_REMEDIES = {
    Stage.VAULT: "see the token's path in Vault and the rights above",
    Stage.DOMAIN: "see account_id, sentinel.domain_api and sentinel.allowed_hosts",
}


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


class Vault(Protocol):
    def health(self) -> str: ...
    def keep_alive(self) -> float: ...
    def now(self) -> datetime: ...


class Preflight:
    def __init__(
        self,
        *,
        vault: Vault,
        granted: Callable[[], Iterable[Granted]],
        accounts: Accounts,
        tokens: Tokens,
        domains: Domains,
        reach: Callable[[str, timedelta], datetime | None],
        timeout: timedelta,
        mend_account: str,
    ) -> None:
        """
        :param mend_account: the command that mends an account's secret, with a place for {name}.
        :param granted: the login's rights at each path that matters.
        :param reach: connects to a Sentinel host without asking for a token; its clock. RefreshError if it cannot.
        """
        self._vault = vault
        self._granted = granted
        self._accounts = accounts
        self._tokens = tokens
        self._domains = domains
        self._reach = reach
        self._timeout = timeout
        self._mend_account = mend_account

    def run(self) -> Iterator[Line]:
        """The lines, each as soon as it is known. What makes the rest pointless ends them."""
        for step in (self._health, self._login):
            line = step()
            yield line
            if not line.ok:
                return
        yield from self._rights()
        yield self._clock("vault", self._vault.now())
        try:
            names = sorted(self._accounts.names())
        except RefreshError as error:
            yield Line("accounts", ok=False, detail=str(error), remedy="give the login the right to list the accounts")
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
            return Line(
                "vault", ok=False, detail=str(error), remedy="see vault.address, vault.ca_cert and Vault itself"
            )

    def _login(self) -> Line:
        try:
            self._vault.keep_alive()
        except RefreshError as error:
            return Line("login", ok=False, detail=str(error), remedy="see vault.auth_method and its settings")
        return Line("login", ok=True, detail="logged in")

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
            yield Line("rights", ok=False, detail=str(error), remedy=remedy)

    def _each_account(self, names: Iterable[str]) -> Iterator[Line]:
        hosts: dict[str, list[str]] = {}
        for name in names:
            try:
                self._tokens.read(name)
                account = self._accounts.read(name)
                host = self._domains.sentinel_host(account, self._timeout)
            except AccountDisabledError:
                yield Line(f"account {name}", ok=True, detail="disabled")
            except RefreshError as error:
                remedy = _REMEDIES.get(error.stage, self._mend_account.format(name=name))
                yield Line(f"account {name}", ok=False, detail=str(error), remedy=remedy)
            else:
                hosts.setdefault(host, []).append(name)
                yield Line(f"account {name}", ok=True, detail=f"valid, at {host}")
        for host in sorted(hosts):
            yield from self._host(host)

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
        skew = datetime.now(UTC) - now
        detail = f"{skew.total_seconds():+.0f} s against {against}"
        ok = abs(skew) <= _LARGEST_SKEW
        return Line(
            "clock", ok=ok, detail=detail, remedy=None if ok else "set this machine's clock, for example by NTP"
        )
