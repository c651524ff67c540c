"""A world outside as the contract tests see it: the worker's Protocols, and what can be done behind its back."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandbox.faults import Faults
from sandbox.liveperson import Credentials
from tests.fakes.vault import Metadata
from worker.mint import Domains, Sentinel
from worker.refresh import Accounts, Tokens


class Kv(Protocol):
    """KV v2 as an operator uses it; the fake's own is one."""

    def put(self, path: str, data: Mapping[str, object]) -> int: ...
    def delete(self, path: str) -> None: ...
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
    accounts: Accounts
    tokens: Tokens
    kv: Kv
    account_folder: str
    token_folder: str
    now: Callable[[], datetime]
    wait: Callable[[timedelta], object]
    down: Callable[[], AbstractContextManager[object]]
    denied: Callable[[], AbstractContextManager[object]]
    losing_answers: Callable[[], AbstractContextManager[object]]


class Backstage(Protocol):
    """LivePerson as whoever sets it up sees it."""

    token_life: timedelta
    faults: Faults
    hosts: dict[str, str]

    def add_account(self, account_id: str, region: str | None = None) -> Credentials: ...
    def rotate(self, account_id: str, client_id: str) -> Credentials: ...
    def remove(self, account_id: str) -> None: ...
    def mints(self, account_id: str | None = None) -> int: ...


@dataclass
class LivePersonPort:
    domains: Domains
    sentinel: Sentinel
    backstage: Backstage
    now: Callable[[], datetime]
    advance: Callable[[timedelta], object]
    """The clock by which look-ups are cached."""
