"""The outside world of the contract tests: the ports, the stores above them, and the operator's acts behind them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandbox.faults import Faults
from sandbox.liveperson import Credentials
from tests.fakes.vault import Metadata
from worker.liveperson.hosts import HostLookup, HostResolver
from worker.obtain import Sentinel
from worker.vault.accounts import AccountStore
from worker.vault.kv import Kv
from worker.vault.tokens import TokenStore


class Engine(Protocol):
    """KV v2 as an operator uses it; the fake's own is one."""

    def put(self, path: str, data: Mapping[str, object]) -> int: ...
    def delete(self, path: str) -> None: ...
    def undelete(self, path: str) -> None: ...
    def destroy(self, path: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def set_metadata(
        self,
        path: str,
        *,
        max_versions: int | None = None,
        delete_version_after: timedelta | None = None,
        custom_metadata: Mapping[str, str | None] | None = None,
    ) -> None: ...
    def metadata(self, path: str) -> Metadata | None: ...


@dataclass
class VaultPort:
    port: Kv
    """The five calls, at the tokens' mount."""
    accounts: AccountStore
    tokens: TokenStore
    kv: Engine
    account_folder: str
    token_folder: str
    now: Callable[[], datetime]
    wait: Callable[[timedelta], object]
    down: Callable[[], AbstractContextManager[object]]
    denied: Callable[[], AbstractContextManager[object]]
    losing_answers: Callable[[], AbstractContextManager[object]]


class Backstage(Protocol):
    """LivePerson as seen by its operator."""

    token_life: timedelta
    faults: Faults
    hosts: dict[str, str]

    def add_account(self, account_id: str, region: str | None = None) -> Credentials: ...
    def rotate(self, account_id: str, client_id: str) -> Credentials: ...
    def remove(self, account_id: str) -> None: ...
    def mints(self, account_id: str | None = None) -> int: ...


@dataclass
class LivePersonPort:
    lookup: HostLookup
    hosts: HostResolver
    """The product's, over that look-up."""
    sentinel: Sentinel
    backstage: Backstage
    now: Callable[[], datetime]
    advance: Callable[[timedelta], object]
    """The clock by which look-ups are cached."""
