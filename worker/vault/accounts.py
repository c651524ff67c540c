"""The accounts in Vault: found and read below the accounts prefix, on KV v1 or v2. The worker never writes there."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Final

import requests
import structlog

from worker.core import account
from worker.core.account import Absence, Account, join_path
from worker.core.errors import InvalidAccountError, Kind, RefreshError, Stage
from worker.vault.kv import Kv, SecretVersion

_MAX_DEPTH: Final = 8
_MAX_ACCOUNTS: Final = 100_000
"""A known account beyond the limit stays managed: absence from a LIST alone removes no account."""
_TOO_DEEP: Final = RefreshError(
    Stage.CREDENTIALS,
    Kind.PERMANENT,
    f"it is more than {_MAX_DEPTH} folders deep: the accounts in it are not found",
    remedy="move them up",
)
_TOO_MANY: Final = RefreshError(
    Stage.CREDENTIALS,
    Kind.PERMANENT,
    f"it has more than {_MAX_ACCOUNTS} accounts: only the first {_MAX_ACCOUNTS} are managed",
    remedy="give the others to another installation, with a prefix of its own",
)
_ROTATION_OVERLAP: Final = timedelta(hours=24)
"""Time for which the previous client_secret is tried too: Vault may get a new one before LivePerson does."""
_MAX_VERSIONS: Final = 5
"""Older versions to search: an edit of another field creates a version too."""

log = structlog.get_logger()


class AccountStore:
    def __init__(self, kv: Kv, *, prefix: str) -> None:
        self._kv = kv
        self._prefix = prefix
        self.unlisted_folders: Mapping[str, RefreshError] = {}
        """Folders whose accounts the latest `names` lacks, and why. Each is reported once."""

    def names(self) -> frozenset[str]:
        """Return every account's name, at any depth; what it leaves out is in `unlisted_folders`."""
        unlisted_folders: dict[str, RefreshError] = {}
        walk = self._walk("", 0, unlisted_folders)
        names = frozenset(islice(walk, _MAX_ACCOUNTS))
        if next(walk, None) is not None:
            unlisted_folders[self._prefix or "/"] = _TOO_MANY
        for folder, error in unlisted_folders.items():
            if folder not in self.unlisted_folders:
                log.warning("accounts.synced", folder=folder, error=str(error))
        self.unlisted_folders = unlisted_folders
        return names

    def read(self, name: str) -> Account | Absence:
        """Return the account with its credentials, for one refresh; InvalidAccountError or VaultError."""
        secret = self._get(name).data
        return Absence.REMOVED if secret is None else account.parse(name, secret)

    def path(self, name: str) -> str:
        """Return the account's path with its mount, for people."""
        return f"{self._kv.mount}/{self._path_in_mount(name)}"

    def previous(self, current: Account) -> Account | None:
        """Return the account with its previous client_secret if it was replaced within a day; KV v2 only."""
        newer = self._get(current.name)
        for number in range(newer.number - 1, 0, -1)[:_MAX_VERSIONS]:
            if newer.created is None or newer.now - newer.created > _ROTATION_OVERLAP:
                return None
            older = self._get(current.name, number)
            if older.data is None:
                return None
            if older.data.get("client_secret") != current.client_secret.get_secret_value():
                return self._same_account(current, older.data)
            newer = older
        return None

    def fix_command(self, name: str, field: str) -> str:
        """Return the command that sets a field of an account's secret."""
        value = "@FILE" if field == "client_secret" else "VALUE"  # a secret is not for the shell's history
        v2 = self._kv.version() > 1
        command = f"patch {{}} {field}={value}" if v2 else "put {} client_id=VALUE client_secret=@FILE"
        return "vault kv " + command.format(f"-mount={self._kv.mount} {self._path_in_mount(name)}")

    def _get(self, name: str, version: int | None = None) -> SecretVersion:
        account.check_name(name)
        return self._kv.get(self._path_in_mount(name), version)

    def _same_account(self, current: Account, older: Mapping[str, object]) -> Account | None:
        try:
            previous = account.parse(current.name, {**older, "enabled": True})  # the newest version is enabled
        except InvalidAccountError:
            return None
        if isinstance(previous, Absence) or previous.client_id != current.client_id:
            return None
        return previous if previous.account_id == current.account_id else None

    def _walk(self, folder: str, depth: int, unlisted_folders: dict[str, RefreshError]) -> Iterator[str]:
        path = self._path_in_mount(folder).rstrip("/")
        if depth > _MAX_DEPTH:
            unlisted_folders[path] = _TOO_DEEP
            return
        try:
            keys = self._kv.list(path)
        except RefreshError as error:
            if error.status == requests.codes.forbidden and depth:
                # known accounts in it stay managed: absence from a LIST alone removes no account
                unlisted_folders[path] = error
                return
            raise
        for key in keys:
            if key.endswith("/"):
                yield from self._walk(folder + key, depth + 1, unlisted_folders)
            else:
                yield folder + key

    def _path_in_mount(self, name: str) -> str:
        return join_path(self._prefix, name)
