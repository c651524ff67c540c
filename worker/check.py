"""--check: what has to be right before the daemon can do its work, a line each. No credential is sent to Sentinel."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from worker.check_accounts import (
    FORBIDDEN,
    AccountChecks,
    CheckedAccounts,
    CheckResult,
    check_proxy,
    failure,
    vault_remedy,
)
from worker.core.errors import RefreshError
from worker.schedule.dispatch import Pool

_USUAL_LIFETIME = timedelta(hours=1)
"""Of LivePerson's tokens."""


class AccessRight(Protocol):
    @property
    def path(self) -> str: ...
    def policy_line(self) -> str: ...


class RightCheck(Protocol):
    @property
    def right(self) -> AccessRight: ...
    @property
    def missing(self) -> Sequence[str]: ...
    @property
    def excess(self) -> Sequence[str]: ...


class Login(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def revocable(self) -> bool: ...
    @property
    def uses(self) -> float: ...
    def keep_alive(self) -> float: ...
    def logins_for(self, requests: float) -> float: ...


class Mount(Protocol):
    @property
    def mount(self) -> str: ...
    def version(self) -> int: ...
    def retention(self) -> timedelta | None: ...


class Vault(Protocol):
    @property
    def address(self) -> str: ...
    @property
    def login(self) -> Login: ...
    def health(self) -> str: ...
    def namespace_fault(self) -> str | None: ...
    def now(self) -> datetime: ...


class Preflight:
    def __init__(
        self,
        *,
        vault: Vault,
        mounts: Mapping[str, Mount],
        granted: Callable[[], Iterable[RightCheck]],
        accounts: CheckedAccounts,
        account_checks: AccountChecks,
        domain_api: str,
        retention_command: Callable[[], str],
        requests_per_hour: Callable[[int], float],
    ) -> None:
        """
        :param mounts: by setting, the KV mount that it names.
        :param granted: the login's rights at each path that matters.
        :param domain_api: its URL.
        :param retention_command: makes the tokens' mount keep tokens until they are replaced.
        :param requests_per_hour: estimates the daemon's requests to Vault for so many accounts.
        """
        self._vault = vault
        self._login = vault.login
        self._mounts = mounts
        self._granted = granted
        self._accounts = accounts
        self._account_checks = account_checks
        self._domain_api = domain_api
        self._retention_command = retention_command
        self._requests_per_hour = requests_per_hour

    def run(self, pool: Pool, progress: Callable[[int, int], object] = lambda *_: None) -> Iterator[CheckResult]:
        """Yield the results as soon as they are known. A failure that makes the rest pointless is the last one.

        :param pool: makes the requests, so that a signal interrupts the caller alone.
        :param progress: called with the number of accounts that were checked, and of all.
        """
        mounts = (partial(self._mount, setting) for setting in self._mounts)
        proxy = partial(check_proxy, self._vault.address)
        steps: list[Callable[[], CheckResult | None]] = [proxy, self._health, self._namespace, self._logged_in, *mounts]
        for step in steps:
            result = pool.call(step)
            if result:
                yield result
                if not result.ok and step != self._namespace:
                    return
        yield pool.call(self._check_retention)
        yield from pool.call(lambda: [*self._rights()])
        yield from self._account_checks.clock("vault", self._vault.now())
        yield from self._all_accounts(pool, progress)
        yield from self._account_checks.summary()

    def _all_accounts(self, pool: Pool, progress: Callable[[int, int], object]) -> Iterator[CheckResult]:
        try:
            names = pool.call(lambda: sorted(self._accounts.names()))
        except RefreshError as error:
            yield failure("accounts", error, vault_remedy(error))
            return
        yield CheckResult(
            "accounts",
            ok=bool(names),
            detail=f"{len(names)} found",
            remedy=None
            if names
            else "put an account below accounts.prefix, or correct accounts.mount and accounts.prefix",
        )
        for folder, folder_error in self._accounts.unlisted_folders.items():
            yield failure(f"folder {folder}", folder_error, vault_remedy(folder_error))
        if self._login.uses < math.inf:
            yield self._uses(len(names))
        if result := check_proxy(self._domain_api):
            yield result
        yield from self._account_checks.run(names, pool, progress)

    def _health(self) -> CheckResult:
        try:
            return CheckResult("vault", ok=True, detail=self._vault.health())
        except RefreshError as error:
            return failure("vault", error, "check vault.address, vault.ca_cert, and Vault's health and logs")

    def _namespace(self) -> CheckResult | None:
        fault = self._vault.namespace_fault()
        return CheckResult("vault.namespace", ok=False, detail=fault, remedy="unset vault.namespace") if fault else None

    def _logged_in(self) -> CheckResult:
        try:
            self._login.keep_alive()
        except RefreshError as error:
            return failure("login", error, "see vault.auth_method and its settings")
        return CheckResult("login", ok=True, detail=f"by {self._login.method}")

    def _uses(self, accounts: int) -> CheckResult:
        requests = self._requests_per_hour(accounts)
        if not self._login.revocable:  # a configured token: no login can replace it
            return CheckResult(
                "login uses",
                ok=False,
                detail=f"{self._login.uses:.0f} left, of which about {requests:.0f} an hour are needed",
                remedy="use a token without a limit of uses (num_uses)",
            )
        logins = math.ceil(self._login.logins_for(requests))
        cost = ", each of which may use up a secret_id" if self._login.method == "approle" else ""
        detail = f"warning: {self._login.uses:.0f} per login (token_num_uses): about {logins} logins an hour{cost}"
        return CheckResult("login uses", ok=True, detail=detail)

    def _mount(self, setting: str) -> CheckResult:
        mount = self._mounts[setting]
        try:
            return CheckResult(setting, ok=True, detail=f"{mount.mount} is KV version {mount.version()}")
        except RefreshError as error:
            kind = "KV version 2" if setting == "tokens.mount" else "KV"
            remedy = f"set {setting} to a {kind} mount; to create one: vault secrets enable -path=NAME -version=2 kv"
            if error.status == FORBIDDEN:
                remedy = f"set {setting} to an existing mount, and grant the login config/policies/worker.hcl for it"
            return failure(setting, error, remedy)

    def _check_retention(self) -> CheckResult:
        """Check after how long the tokens' mount deletes a version; the right to read that is optional."""
        check = "tokens.mount delete_version_after"
        try:
            retention = self._mounts["tokens.mount"].retention()
        except RefreshError as error:
            return CheckResult(check, ok=True, detail=f"cannot be read: {error}")
        if retention is None:
            return CheckResult(check, ok=True, detail="unset: a token is kept until it is replaced")
        after, remedy = f"{retention.total_seconds():.0f} s", self._retention_command()
        if retention < _USUAL_LIFETIME:
            return CheckResult(
                check, ok=False, detail=f"{after}: Vault deletes tokens before they expire", remedy=remedy
            )
        return CheckResult(
            check, ok=True, detail=f"{after}; warning: some agents take such tokens for deleted: {remedy}"
        )

    def _rights(self) -> Iterator[CheckResult]:
        try:
            for granted in self._granted():
                right = granted.right
                excess = f"; warning: it may also {', '.join(granted.excess)}" if granted.excess else ""
                yield CheckResult(
                    f"right {right.path}",
                    ok=not granted.missing,
                    detail=f"missing: {', '.join(granted.missing)}" if granted.missing else f"granted{excess}",
                    remedy=f"add to the policy: {right.policy_line()}" if granted.missing else None,
                )
        except RefreshError as error:
            remedy = 'add to the policy: path "sys/capabilities-self" { capabilities = ["update"] }'
            forbidden = error.status == FORBIDDEN
            yield failure("rights", error, remedy if forbidden else vault_remedy(error))
