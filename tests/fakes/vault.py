"""The one fake Vault: KV v2 in memory, and the second implementation of Accounts and Tokens over it.

tests/ports holds all it promises against a real OpenBao.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final

from pydantic import SecretStr

from tests.fakes.clock import HOUR, Clock, nothing
from worker.core import account
from worker.core.account import Account
from worker.core.appjwt import AppJWT
from worker.core.errors import (
    AccountGoneError,
    CasMismatchError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.unchecked import Stored

MANAGED_BY: Final = "appjwt-worker"
_MAX_VERSIONS_BY_DEFAULT = 10


@dataclass
class _Version:
    data: Mapping[str, object] | None
    """None = destroyed."""
    created: datetime
    deletion: datetime | None


@dataclass
class _Path:
    """KV v2's metadata of one path."""

    current: int = 0
    versions: dict[int, _Version] = field(default_factory=dict)
    max_versions: int = 0
    delete_version_after: timedelta = timedelta()
    custom_metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Newest:
    """What reading a path tells; `data` None = that version was deleted, ran out or was destroyed."""

    version: int
    data: Mapping[str, object] | None
    custom_metadata: Mapping[str, str]
    kept_for: timedelta


@dataclass(frozen=True)
class Metadata:
    """What reading a path's metadata tells."""

    versions: tuple[int, ...]
    max_versions: int
    delete_version_after: timedelta
    custom_metadata: Mapping[str, str]


@dataclass(frozen=True)
class VaultFault:
    """What goes wrong with one request; the plain `VaultFault()` is a healthy Vault."""

    refuse: bool = False
    hang: bool = False
    """Never answer: `at_hang` says how a caller waits for its timeout."""
    status: int | None = None
    """Refuse with this status, as a sealed Vault (503) or a policy (403) does."""
    lose_answer: bool = False
    """Carry it out, and lose the connection before the answer."""
    stale: timedelta | None = None
    """Read what was there so long ago, as a standby that lags does."""
    one_behind: bool = False
    """Read the version before the newest, if that is new; a standby that was cut off may lag so far."""


LONGEST_LAG: Final = timedelta(seconds=2)
HEALTHY: Final = VaultFault()
_LASTING: Final = frozenset({400, 401, 403, 404, 405})


class CasError(Exception):
    """The write did not know the newest version."""


class Kv:
    """A mount of KV v2, as an operator uses it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._paths: dict[str, _Path] = {}
        self.lag = HEALTHY
        """How stale reads are."""

    def put(self, path: str, data: Mapping[str, object], cas: int | None = None) -> int:
        """`vault kv put`; the version's number, or CasError."""
        there = self._paths.get(path, _Path())
        if cas not in (None, there.current):
            raise CasError(f"{cas} is not {there.current}")
        self._paths[path] = there
        now, kept = self._now(), there.delete_version_after
        there.current += 1
        there.versions[there.current] = _Version(dict(data), now, now + kept if kept else None)
        for old in sorted(there.versions)[: -(there.max_versions or _MAX_VERSIONS_BY_DEFAULT)]:
            del there.versions[old]
        return there.current

    def read(self, path: str) -> Newest | None:
        """`vault kv get`; None = 404 without metadata, as where only metadata was ever written."""
        there = self._paths.get(path)
        current = self._seen(there) if there else 0
        if not there or not current:
            return None
        version = there.versions[current]
        lives = version.deletion is None or version.deletion > self._now()
        kept_for = (version.deletion or version.created) - version.created
        return Newest(current, version.data if lives else None, dict(there.custom_metadata), kept_for)

    def delete(self, path: str) -> None:
        """`vault kv delete`: the newest version can no longer be read."""
        self._newest(path).deletion = self._now()

    def destroy(self, path: str) -> None:
        """`vault kv destroy`, of the newest version."""
        self._newest(path).data = None

    def remove(self, path: str) -> None:
        """`vault kv metadata delete`: as if the path had never been."""
        self._paths.pop(path, None)

    def set_metadata(
        self,
        path: str,
        *,
        max_versions: int | None = None,
        delete_version_after: timedelta | None = None,
        custom_metadata: Mapping[str, str | None] | None = None,
    ) -> None:
        """`vault kv metadata patch`, or `put` if there is nothing yet: what is left out stays, None removes a key."""
        there = self._paths.setdefault(path, _Path())
        if max_versions is not None:
            there.max_versions = max_versions
        if delete_version_after is not None:
            there.delete_version_after = delete_version_after
        for key, value in (custom_metadata or {}).items():
            if value is None:
                there.custom_metadata.pop(key, None)
            else:
                there.custom_metadata[key] = value

    def metadata(self, path: str) -> Metadata | None:
        """`vault kv metadata get`."""
        there = self._paths.get(path)
        if not there:
            return None
        versions = tuple(sorted(there.versions))
        return Metadata(versions, there.max_versions, there.delete_version_after, dict(there.custom_metadata))

    def below(self, folder: str) -> frozenset[str]:
        """LIST at every depth: a deleted secret is still in it, a removed one is not."""
        return frozenset(path.removeprefix(folder) for path in self._paths if path.startswith(folder))

    def _seen(self, there: _Path) -> int:
        """The newest version, as far as whoever answers has it."""
        if self.lag is HEALTHY or not there.current:
            return there.current
        newest = there.versions[there.current]
        behind = self.lag.one_behind and self._now() - newest.created < LONGEST_LAG
        before = there.current - 1 if behind else there.current
        if self.lag.stale is not None:
            since = self._now() - self.lag.stale
            before = max((number for number, version in there.versions.items() if version.created <= since), default=0)
        return before if before in there.versions else 0

    def _newest(self, path: str) -> _Version:
        there = self._paths[path]
        return there.versions[there.current]


class FakeVault:
    """`accounts` and `tokens` are what the worker has of it, `kv` what an operator has; the rest is what can go wrong.

    Each request that the real parts would make calls `at_request` before it takes effect and `at_answer` after: a test
    may raise there, as a crash does, or let another replica go first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.skew = timedelta()
        """How far Vault's own clock is ahead."""
        self.is_down = False
        self.denied: set[str] = set()
        """Operations that the policy no longer allows, named as in worker.vault.session."""
        self.losing: set[str] = set()
        """Operations that are carried out and whose answers get lost."""
        self.unlisted: set[str] = set()
        """Accounts that a LIST leaves out, as one from a standby that lags may."""
        self.fault: Callable[[str, str], VaultFault] = lambda _operation, _name: HEALTHY
        """What goes wrong with this request, by operation and account."""
        self.records = True
        """Whether `calls` is kept; a run of years has no room for it."""
        self.calls: list[tuple[str, str]] = []
        """Operation and account of each request."""
        self.at_request: Callable[[str, str], object] = nothing
        self.at_answer: Callable[[str, str], object] = nothing
        self.at_hang: Callable[[], object] = nothing
        self.kv = Kv(self.now)
        self.accounts = FakeAccounts(self)
        self.tokens = FakeTokens(self)

    def now(self) -> datetime:
        return self._clock.now() + self.skew

    def request(self, operation: str, name: str) -> "_Request":
        """What happens around every request."""
        return _Request(self, operation, name)


class _Request:
    """Not a generator, for it is the hottest spot of the simulation."""

    __slots__ = ("_fault", "_name", "_operation", "_vault")

    def __init__(self, vault: FakeVault, operation: str, name: str) -> None:
        self._vault, self._operation, self._name = vault, operation, name
        self._fault = HEALTHY

    def __enter__(self) -> None:
        vault, operation, name = self._vault, self._operation, self._name
        if vault.records:
            vault.calls.append((operation, name))
        vault.at_request(operation, name)
        self._fault = fault = vault.fault(operation, name)
        if fault.hang:
            vault.at_hang()
            raise self._failure(Kind.TRANSIENT, "no complete answer")
        if vault.is_down or fault.refuse:
            raise self._failure(Kind.TRANSIENT, "connection refused")
        status = 403 if operation in vault.denied else fault.status
        if status is not None:
            kind = Kind.LASTING if status in _LASTING else Kind.TRANSIENT
            raise self._failure(kind, f"status {status}", status)
        vault.kv.lag = fault

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        vault, operation, name = self._vault, self._operation, self._name
        vault.kv.lag = HEALTHY
        if error is None:
            vault.at_answer(operation, name)
            if operation in vault.losing or self._fault.lose_answer:
                raise self._failure(Kind.TRANSIENT, "connection lost")

    def _failure(self, kind: Kind, text: str, status: int | None = None) -> RefreshError:
        stage = Stage.CREDENTIALS if self._operation == "read_account" else Stage.VAULT
        return RefreshError(stage, kind, f"{self._operation} {self._name}: {text}", status=status)


class FakeAccounts:
    FOLDER: Final = "liveperson/accounts/"

    def __init__(self, vault: FakeVault) -> None:
        self._vault = vault

    def names(self) -> frozenset[str]:
        with self._vault.request("list", ""):
            return self._vault.kv.below(self.FOLDER) - self._vault.unlisted

    def read(self, name: str) -> Account:
        if not account.is_name(name):
            raise InvalidAccountError(f"{name!r} is no account's name")
        with self._vault.request("read_account", name):
            newest = self._vault.kv.read(self.FOLDER + name)
        if newest is None or newest.data is None:
            raise AccountGoneError(f"there is no secret at {self.FOLDER}{name}")
        return account.parse(name, newest.data)

    def previous(self, current: Account) -> Account | None:
        """There is none: what Vault's own versions give is proven on the real part."""
        del current
        return None


class FakeTokens:
    FOLDER: Final = "liveperson/tokens/"

    def __init__(self, vault: FakeVault) -> None:
        self._vault = vault

    def read(self, name: str) -> Stored:
        with self._vault.request("read_token", name):
            newest = self._vault.kv.read(self.FOLDER + name) or Newest(0, None, {}, timedelta())
        notes = newest.custom_metadata
        if not newest.version:
            with self._vault.request("read_token", name):
                metadata = self._vault.kv.metadata(self.FOLDER + name)
            notes = metadata.custom_metadata if metadata else {}
        data = newest.data or {}
        marked = notes.get("managed_by") == MANAGED_BY
        if newest.version and not marked and data.get("managed_by") != MANAGED_BY:
            raise ForeignSecretError(f"{self.FOLDER}{name} holds a secret that is not ours")
        token, host = data.get("access_token"), data.get("sentinel_host")
        return Stored(
            version=newest.version,
            raw=SecretStr(token) if isinstance(token, str) else None,
            host=host if isinstance(host, str) else None,
            refresh_at=str(data.get("refresh_at", "")) or None,
            marked=marked,
            kept_for=newest.kept_for,
            now=self._vault.now(),
            notes=notes,
        )

    def write(self, name: str, token: AppJWT, beside: Mapping[str, str], replaces: Stored) -> int:
        settled = replaces.marked and replaces.kept_for > token.lifetime
        if not settled:
            self.settle(name, token.lifetime, replaces.kept_for)
        data = {"access_token": token.raw.get_secret_value(), **beside, "managed_by": MANAGED_BY}
        try:
            version = self._put(name, data, replaces.version)
        except CasMismatchError:
            if not settled:
                self._give_back_to_stranger(name)
            raise
        newest = self._vault.kv.read(self.FOLDER + name)
        if settled and newest and timedelta(0) < newest.kept_for <= token.lifetime:
            self.settle(name, token.lifetime, newest.kept_for)
            version = self._put(name, data, version)
        return version

    def settle(self, name: str, lifetime: timedelta, kept_for: timedelta) -> None:
        with self._vault.request("write_metadata", name):
            self._vault.kv.set_metadata(
                self.FOLDER + name,
                max_versions=5,
                delete_version_after=max(lifetime + max(lifetime, HOUR), kept_for),
                custom_metadata={"managed_by": MANAGED_BY},
            )

    def note(self, name: str, news: Mapping[str, str | None]) -> None:
        with self._vault.request("write_metadata", name):
            self._vault.kv.set_metadata(self.FOLDER + name, custom_metadata=news)

    def _put(self, name: str, data: Mapping[str, object], cas: int) -> int:
        with self._vault.request("write_token", name):
            try:
                return self._vault.kv.put(self.FOLDER + name, data, cas=cas)
            except CasError as error:
                raise CasMismatchError(f"write_token {name}: {error}") from error

    def _give_back_to_stranger(self, name: str) -> None:
        with self._vault.request("read_token", name):
            newest = self._vault.kv.read(self.FOLDER + name)
        if newest and newest.data and newest.data.get("managed_by") != MANAGED_BY:
            with self._vault.request("write_metadata", name):
                self._vault.kv.set_metadata(
                    self.FOLDER + name,
                    max_versions=0,
                    delete_version_after=timedelta(0),
                    custom_metadata={"managed_by": None},
                )
            raise ForeignSecretError(f"{self.FOLDER}{name} holds a secret that is not ours")
