"""A Vault in memory: a KV engine as an operator uses it, and the port over it, with all possible faults on the way.

It implements no rule of the product: meaning, ownership and write order of the secrets are left to the stores above the
port. tests/ports runs the port's contract tests on it and on a real OpenBao.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final

from tests.fakes.clock import Clock, nothing
from worker.core.errors import CasMismatchError, Kind, RefreshError, Stage, ThrottledError
from worker.vault.accounts import AccountStore
from worker.vault.errors import RequestFailure, VaultError
from worker.vault.kv import MetadataPatch, SecretVersion
from worker.vault.tokens import TokenStore

ACCOUNTS: Final = "liveperson/accounts/"
TOKENS: Final = "liveperson/tokens/"
LONGEST_LAG: Final = timedelta(seconds=2)
_MAX_VERSIONS_BY_DEFAULT: Final = 10
_NO_TIME: Final = timedelta(0)


@dataclass(frozen=True)
class _Version:
    data: Mapping[str, object] | None
    """None = destroyed."""
    created: datetime
    deletion: datetime | None


@dataclass(frozen=True)
class _Path:
    """A path at one moment. A change makes another one, so that a standby's view of the past can be stored."""

    current: int = 0
    versions: Mapping[int, _Version] = field(default_factory=dict)
    max_versions: int = 0
    delete_version_after: timedelta = _NO_TIME
    custom_metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """A path's metadata as an operator reads it."""

    versions: tuple[int, ...]
    max_versions: int
    delete_version_after: timedelta
    custom_metadata: Mapping[str, str]


@dataclass(frozen=True)
class VaultFault:
    """A fault of one request; the plain `VaultFault()` is a healthy Vault."""

    refuse: bool = False
    hang: bool = False
    """Never answer: `at_hang` lets a caller wait for its timeout."""
    status: int | None = None
    """Refuse with this status, as a sealed Vault (503), a policy (403) or a rate limit (429) does."""
    retry_after: timedelta | None = None
    lose_answer: bool = False
    """Carry it out, and lose the connection before the answer."""
    stale: timedelta = _NO_TIME
    """Answer a read with what was there so long ago, as a standby that lags does."""


HEALTHY: Final = VaultFault()
_TOO_MANY: Final = 429


class KvEngine:
    """A mount of KV version 2, as an operator uses it."""

    def __init__(self, now: Callable[[], datetime], steady: Callable[[], datetime]) -> None:
        """
        :param now: the server's clock, which may be set.
        :param steady: a clock that is never set: a standby lags by it.
        """
        self._now = now
        self._steady = steady
        self._paths: dict[str, _Path] = {}
        self._past: dict[str, deque[tuple[datetime, _Path | None]]] = {}
        """For each path that changed, what was there until a moment within LONGEST_LAG."""
        self._listed: dict[str, list[str]] = {}
        """The paths below folders that were listed since the last path came or went."""
        self.delete_version_after = _NO_TIME
        """The mount's own."""

    def put(self, path: str, data: Mapping[str, object], cas: int | None = None) -> int:
        """`vault kv put`: the new version's number; CasMismatchError."""
        there = self._paths.get(path, _Path())
        if cas not in (None, there.current):
            raise CasMismatchError(f"check-and-set: {cas} is not {there.current}")
        now, after = self._now(), self._retention(there)
        versions = {**there.versions, there.current + 1: _Version(dict(data), now, now + after if after else None)}
        for old in sorted(versions)[: -(there.max_versions or _MAX_VERSIONS_BY_DEFAULT)]:
            del versions[old]
        self._change(path, replace(there, current=there.current + 1, versions=versions))
        return there.current + 1

    def get(self, path: str, version: int | None = None, stale: timedelta = _NO_TIME) -> SecretVersion:
        """`vault kv get`; number 0 = 404 without metadata, as where only metadata was ever written."""
        now, there = self._now(), self._seen(path, stale)
        number = (version or there.current) if there else 0
        found = there.versions.get(number) if there else None
        if there is None or found is None:
            return SecretVersion(0, now)
        is_live = found.deletion is None or found.deletion > now
        data = found.data if is_live else None
        return SecretVersion(number, now, data, found.created, found.deletion, dict(there.custom_metadata))

    def delete(self, path: str) -> None:
        """`vault kv delete`: the newest version can no longer be read."""
        self._change_newest(path, deletion=self._now())

    def undelete(self, path: str) -> None:
        """`vault kv undelete`, of the newest version."""
        self._change_newest(path, deletion=None)

    def destroy(self, path: str) -> None:
        """`vault kv destroy`, of the newest version."""
        self._change_newest(path, data=None)

    def remove(self, path: str) -> None:
        """`vault kv metadata delete`: as if the path had never been."""
        if path in self._paths:
            self._change(path, None)

    def set_metadata(
        self,
        path: str,
        *,
        max_versions: int | None = None,
        delete_version_after: timedelta | None = None,
        custom_metadata: Mapping[str, str | None] | None = None,
    ) -> None:
        """`vault kv metadata patch`, or `put` if there is nothing yet: what is left out stays, None removes a key."""
        there = self._paths.get(path, _Path())
        merged = {**there.custom_metadata, **(custom_metadata or {})}
        after = there.delete_version_after if delete_version_after is None else delete_version_after
        changed = replace(
            there,
            max_versions=there.max_versions if max_versions is None else max_versions,
            delete_version_after=after,
            custom_metadata={key: value for key, value in merged.items() if value is not None},
        )
        self._change(path, changed)

    def metadata(self, path: str, stale: timedelta = _NO_TIME) -> Metadata | None:
        """`vault kv metadata get`."""
        there = self._seen(path, stale)
        if there is None:
            return None
        versions = tuple(sorted(there.versions))
        return Metadata(versions, there.max_versions, there.delete_version_after, dict(there.custom_metadata))

    def below(self, folder: str) -> list[str]:
        """Return every path below a folder, sorted: a deleted secret is still listed, a removed one is not."""
        if folder not in self._listed:
            self._listed[folder] = sorted(path for path in self._paths if path.startswith(folder))
        return self._listed[folder]

    def _retention(self, there: _Path) -> timedelta:
        both = [each for each in (self.delete_version_after, there.delete_version_after) if each]
        return min(both, default=_NO_TIME)

    def _seen(self, path: str, stale: timedelta) -> _Path | None:
        if stale:
            since = self._steady() - stale
            for until, before in self._past.get(path, ()):
                if until > since:
                    return before
        return self._paths.get(path)

    def _change_newest(self, path: str, **changes: object) -> None:
        there = self._paths[path]
        newest = replace(there.versions[there.current], **changes)  # type: ignore[arg-type] # fields of _Version
        self._change(path, replace(there, versions={**there.versions, there.current: newest}))

    def _change(self, path: str, changed: _Path | None) -> None:
        now, past = self._steady(), self._past.setdefault(path, deque())
        past.append((now, self._paths.get(path)))
        while past[0][0] < now - LONGEST_LAG:
            past.popleft()
        if changed is None or path not in self._paths:
            self._listed.clear()
        if changed is None:
            del self._paths[path]
        else:
            self._paths[path] = changed


class FakeVault:
    """`accounts` and `tokens` are the product's stores over the fake port, `kv` is what an operator has.

    Each request calls `at_request` before it takes effect and `at_answer` after: a test may raise there, as a crash
    does, or let another replica go first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.skew = _NO_TIME
        """Lead of Vault's clock."""
        self.is_down = False
        self.denied: set[str] = set()
        """Operations that the policy no longer allows, named as in worker.vault.operation."""
        self.losing: set[str] = set()
        """Operations that are carried out and whose answers get lost."""
        self.unlisted: set[str] = set()
        """Accounts that a LIST leaves out, as one from a standby that lags may."""
        self.fault: Callable[[str, str], VaultFault] = lambda _operation, _name: HEALTHY
        """Returns the fault of this request, by operation and account."""
        self.records = True
        """False = `calls` is not recorded: a run of years has no room for it."""
        self.calls: list[tuple[str, str]] = []
        """Operation and account of each request."""
        self.pace: Callable[[str, Callable[[], Any]], Any] = lambda _operation, send: send()
        """Sends a request of this operation, as the gate of a process does."""
        self.at_request: Callable[[str, str], object] = nothing
        self.at_answer: Callable[[str, str], object] = nothing
        self.at_hang: Callable[[], object] = nothing
        self.at_view: Callable[[str, SecretVersion, timedelta], object] = nothing
        """Called with a path, what a read of it showed, and how old that is."""
        self.kv = KvEngine(self.now, self._clock.now)
        self.accounts = AccountStore(FakeKv(self, ACCOUNTS, "read_account"), prefix=ACCOUNTS.rstrip("/"))
        self.tokens = TokenStore(FakeKv(self, TOKENS, "read_token"), prefix=TOKENS.rstrip("/"), clock=self._clock)

    def now(self) -> datetime:
        return self._clock.now() + self.skew


class _Request:
    """The steps around every request. Not a generator, as it is the hottest spot of the simulation."""

    __slots__ = ("_name", "_operation", "_vault", "fault")

    def __init__(self, vault: FakeVault, operation: str, name: str) -> None:
        self._vault, self._operation, self._name = vault, operation, name
        self.fault = HEALTHY

    def __enter__(self) -> VaultFault:
        vault, operation, name = self._vault, self._operation, self._name
        if vault.records:
            vault.calls.append((operation, name))
        vault.at_request(operation, name)
        self.fault = fault = vault.fault(operation, name)
        if fault.hang:
            vault.at_hang()
            raise self._failure("no complete answer")
        if vault.is_down or fault.refuse:
            raise self._failure("connection refused")
        status = 403 if operation in vault.denied else fault.status
        if status == _TOO_MANY:
            raise ThrottledError(self._stage(), f"{operation} {name}: status 429", fault.retry_after)
        if status is not None:
            raise self._failure(f"status {status}", status)
        return fault

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._vault.at_answer(self._operation, self._name)
            if self._operation in self._vault.losing or self.fault.lose_answer:
                raise self._failure("connection lost")

    def _failure(self, text: str, status: int | None = None) -> VaultError:
        purpose = f"{self._operation} {self._name}"
        return VaultError.of(RequestFailure(text, status=status), purpose, stage=self._stage())

    def _stage(self) -> Stage:
        return Stage.CREDENTIALS if self._operation == "read_account" else Stage.VAULT


class FakeKv:
    """The port over the engine in memory."""

    mount: Final = "secret"

    def __init__(self, vault: FakeVault, folder: str, read: str) -> None:
        """:param folder: the part of a path before an account's name.
        :param read: the operation that reads count as.
        """
        self._vault = vault
        self._folder = folder
        self._read = read

    def version(self) -> int:
        return 2

    def list(self, folder: str) -> Sequence[str]:
        listed: Sequence[str] = self._vault.pace("list", lambda: self._list(folder))
        return listed

    def get(self, path: str, version: int | None = None) -> SecretVersion:
        found: SecretVersion = self._vault.pace(self._read, lambda: self._get(path, version))
        return found

    def put(self, path: str, data: Mapping[str, str], cas: int) -> SecretVersion:
        written: SecretVersion = self._vault.pace("write_token", lambda: self._put(path, data, cas))
        return written

    def get_metadata(self, path: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self._vault.pace(self._read, lambda: self._get_metadata(path))
        return found

    def patch_metadata(self, path: str, patch: MetadataPatch, *, create: bool = False) -> None:
        self._vault.pace("write_metadata", lambda: self._patch_metadata(path, patch, create=create))

    def _list(self, folder: str) -> Sequence[str]:
        with self._request("list", f"{folder}/"):
            vault, start = self._vault, len(folder) + 1
            listed = [each for each in vault.kv.below(f"{folder}/") if each[len(self._folder) :] not in vault.unlisted]
            keys = (each[start:].partition("/") for each in listed)
            return list(dict.fromkeys(key + slash for key, slash, _ in keys))

    def _get(self, path: str, version: int | None) -> SecretVersion:
        with self._request(self._read, path) as fault:
            found = self._vault.kv.get(path, version, fault.stale)
            self._vault.at_view(path, found, fault.stale)
            return found

    def _put(self, path: str, data: Mapping[str, str], cas: int) -> SecretVersion:
        with self._request("write_token", path):
            number = self._vault.kv.put(path, data, cas=cas)
            return replace(self._vault.kv.get(path, number), data=None, request_id=f"request {number} at {path}")

    def _get_metadata(self, path: str) -> Mapping[str, str]:
        with self._request(self._read, path) as fault:
            metadata = self._vault.kv.metadata(path, fault.stale)
            return metadata.custom_metadata if metadata else {}

    def _patch_metadata(self, path: str, patch: MetadataPatch, *, create: bool) -> None:
        with self._request("write_metadata", path):
            if not create and self._vault.kv.metadata(path) is None:
                raise RefreshError(Stage.VAULT, Kind.PERMANENT, f"write_metadata {path}: status 404", status=404)
            self._vault.kv.set_metadata(path, max_versions=patch.max_versions, custom_metadata=patch.custom_metadata)

    def _request(self, operation: str, path: str) -> _Request:
        return _Request(self._vault, operation, path.removeprefix(self._folder))
