"""Which rights the worker needs in Vault, and which of them its login has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.vault.mount import KvMount
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

_ROOT = "root"


@dataclass(frozen=True, slots=True)
class Right:
    path: str
    """As a policy has it."""
    capabilities: tuple[str, ...]

    def policy_line(self) -> str:
        listed = ", ".join(f'"{each}"' for each in self.capabilities)
        return f'path "{self.path}" {{ capabilities = [{listed}] }}'


@dataclass(frozen=True, slots=True)
class Granted:
    right: Right
    missing: tuple[str, ...]
    excess: tuple[str, ...]
    """More than is needed: a risk, not a fault."""


class VaultRights:
    def __init__(
        self, session: VaultSession, *, accounts_mount: str, accounts_prefix: str, tokens_mount: str, tokens_prefix: str
    ) -> None:
        self._session = session
        self._accounts = accounts_mount, accounts_prefix
        self._tokens = tokens_mount, tokens_prefix

    def granted(self) -> list[Granted]:
        """What the login may do at each path that matters; VaultError."""
        rights = self._needed()
        # a policy's * stands for any name: ask for one that nobody has
        paths = {right: right.path.replace("/*", "/" if right.capabilities == ("list",) else "/a") for right in rights}
        answer = self._session.call(
            Operation.READ_ACCOUNT,
            "sys/capabilities-self",
            lambda client: client.sys.get_capabilities(paths=list(paths.values())),
        )
        return [_compared(right, answer.get(path) or []) for right, path in paths.items()]

    def _needed(self) -> list[Right]:
        (mount, prefix), (tokens_mount, tokens_prefix) = self._accounts, self._tokens
        accounts = (
            [Right(f"{mount}/metadata/{prefix}/*", ("list",)), Right(f"{mount}/data/{prefix}/*", ("read",))]
            if KvMount(self._session, mount).version(Operation.LIST) > 1
            else [Right(f"{mount}/{prefix}/*", ("list", "read"))]
        )
        rights = [
            *accounts,
            Right(f"{tokens_mount}/data/{tokens_prefix}/*", ("create", "read", "update")),
            Right(f"{tokens_mount}/metadata/{tokens_prefix}/*", ("create", "read", "update", "patch")),
            Right("auth/token/lookup-self", ("read",)),
        ]
        if self._session.login.renews:
            rights.append(Right("auth/token/renew-self", ("update",)))
        if self._session.login.revokes:
            rights.append(Right("auth/token/revoke-self", ("update",)))
        return rights


def _compared(right: Right, granted: Sequence[Any]) -> Granted:
    if _ROOT in granted:
        return Granted(right, (), ("do anything: it is root",))
    excess = [each for each in granted if each not in (*right.capabilities, "deny")]
    return Granted(right, tuple(each for each in right.capabilities if each not in granted), tuple(excess))
