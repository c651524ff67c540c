"""The rights that the worker needs in Vault, and those that its login has."""

from collections.abc import Collection
from dataclasses import dataclass

from worker.core.account import join_path
from worker.vault.kv import Kv
from worker.vault.session import VaultSession

_ROOT = "root"


@dataclass(frozen=True, slots=True)
class AccessRight:
    path: str
    """As a policy has it."""
    capabilities: tuple[str, ...]

    def policy_line(self) -> str:
        listed = ", ".join(f'"{each}"' for each in self.capabilities)
        return f'path "{self.path}" {{ capabilities = [{listed}] }}'


@dataclass(frozen=True, slots=True)
class RightCheck:
    right: AccessRight
    missing: tuple[str, ...]
    excess: tuple[str, ...]
    """More than is needed: a risk, not a fault."""


class VaultRights:
    def __init__(
        self, session: VaultSession, *, accounts: Kv, accounts_prefix: str, tokens: Kv, tokens_prefix: str
    ) -> None:
        self._session = session
        self._accounts = accounts, accounts_prefix
        self._tokens = tokens.mount, tokens_prefix

    def granted(self) -> list[RightCheck]:
        """Return what the login may do at each path that matters; VaultError."""
        rights = self._required_rights()
        # a policy's * stands for any name: ask for one that nobody has
        paths = {right: right.path.replace("/*", "/" if right.capabilities == ("list",) else "/a") for right in rights}
        found = self._session.capabilities(*paths.values())
        return [_compare(right, found[path]) for right, path in paths.items()]

    def _required_rights(self) -> list[AccessRight]:
        (kv, prefix), (tokens_mount, tokens_prefix) = self._accounts, self._tokens
        mount = kv.mount
        below, tokens_below = join_path(prefix, "*"), join_path(tokens_prefix, "*")
        accounts = (
            [AccessRight(f"{mount}/metadata/{below}", ("list",)), AccessRight(f"{mount}/data/{below}", ("read",))]
            if kv.version() > 1
            else [AccessRight(f"{mount}/{below}", ("list", "read"))]
        )
        rights = [
            *accounts,
            AccessRight(f"{tokens_mount}/data/{tokens_below}", ("create", "read", "update")),
            AccessRight(f"{tokens_mount}/metadata/{tokens_below}", ("create", "read", "patch")),
            AccessRight("auth/token/lookup-self", ("read",)),
        ]
        if self._session.login.renewable:
            rights.append(AccessRight("auth/token/renew-self", ("update",)))
        if self._session.login.revocable:
            rights.append(AccessRight("auth/token/revoke-self", ("update",)))
        return rights


def _compare(right: AccessRight, granted: Collection[str]) -> RightCheck:
    if _ROOT in granted:
        return RightCheck(right, (), ("do anything: it is root",))
    excess = [each for each in granted if each not in (*right.capabilities, "deny")]
    return RightCheck(right, tuple(each for each in right.capabilities if each not in granted), tuple(excess))
