"""The accounts: LIST and read below the accounts prefix, on KV v1 or v2. The worker never writes there."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import requests
import structlog

from worker.core import account
from worker.core.account import Account
from worker.core.errors import AccountGoneError, InvalidAccountError
from worker.vault.adapter import OddAnswerError, VaultError, mapping
from worker.vault.mount import KvMount
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

_DEEPEST = 8
_MOST = 100_000
"""Accounts. Whoever is known stays, for absence from a LIST removes nobody."""

log = structlog.get_logger()
_OVERLAP = timedelta(hours=24)
"""How long after a client_secret was changed the one before it is tried too: a rotation may reach Vault first."""
_LOOKED_BACK = 5
"""Versions: other fields may have been edited since."""


class VaultAccounts:
    def __init__(self, session: VaultSession, *, mount: str, prefix: str) -> None:
        self._session = session
        self._mount = mount
        self._engine = KvMount(session, mount)
        self._prefix = prefix
        self._refused: set[str] = set()
        """Folders that may not be listed, as was said."""

    def names(self) -> frozenset[str]:
        """Every account's name, at any depth; of more than 100,000 only so many, and the log says so."""
        names = self._listed()
        if not names:  # nothing there, or it is asked for in the way of another version
            self._engine.forget()
            names = self._listed()
        return names

    def _listed(self) -> frozenset[str]:
        walk = self._walk("", depth=0)
        names = frozenset(islice(walk, _MOST))
        if next(walk, None) is not None:
            log.error("accounts.synced", error=f"there are more than {_MOST} accounts: no more of them are taken in")
        return names

    def read(self, name: str) -> Account:
        """The account with its credentials, for one refresh.

        AccountGoneError, AccountDisabledError, InvalidAccountError, or VaultError.
        """
        return account.parse(name, self._secret(name)[0])

    def previous(self, current: Account) -> Account | None:
        """The same account with the client_secret before its newest, if that was changed within a day. KV v2 only."""
        try:
            _, metadata = self._secret(current.name)
            for version in range(metadata["version"] - 1, 0, -1)[:_LOOKED_BACK]:
                changed = datetime.fromisoformat(metadata["created_time"])
                if self._session.now() - changed > _OVERLAP:
                    return None
                secret, metadata = self._secret(current.name, version)
                if secret.get("client_secret") != current.client_secret.get_secret_value():
                    before = account.parse(current.name, {**secret, "enabled": True})  # as the newest version has it
                    same = (before.client_id, before.account_id) == (current.client_id, current.account_id)
                    return before if same else None
        except (AccountGoneError, InvalidAccountError, KeyError, TypeError, ValueError):
            pass
        return None

    def engine(self) -> str:
        """What is at the mount, for people; VaultError if it is no KV."""
        return f"{self._mount} is KV version {self._engine.version(Operation.LIST)}"

    def mending(self, name: str, field: str) -> str:
        """The command that mends a field of an account's secret."""
        v2 = self._engine.version(Operation.READ_ACCOUNT) > 1
        value = "@FILE" if field == "client_secret" else "VALUE"  # a secret is not for the shell's history
        what = f"patch {{}} {field}={value}" if v2 else "put {} client_id=VALUE client_secret=@FILE"
        return "vault kv " + what.format(f"-mount={self._mount} {self._prefix}/{name}")

    def _secret(self, name: str, version: int | None = None) -> tuple[Mapping[str, object], Mapping[str, Any]]:
        """The fields of a secret, and on KV v2 its version's metadata."""
        account.check_name(name)
        path = f"{self._prefix}/{name}"
        v2 = self._engine.version(Operation.READ_ACCOUNT) > 1
        try:
            answer = self._session.call(
                Operation.READ_ACCOUNT,
                f"{self._mount}/{path}",
                lambda client: (
                    client.secrets.kv.v2.read_secret_version(
                        path, version=version, mount_point=self._mount, raise_on_deleted_version=True
                    )
                    if v2
                    else client.secrets.kv.v1.read_secret(path, mount_point=self._mount)
                ),
            )
        except VaultError as error:
            if error.says_nothing_is_there:
                raise AccountGoneError(f"there is no secret at {self._mount}/{path}") from error
            raise
        data = mapping(answer.get("data"))
        secret = data.get("data") if v2 else data
        if not isinstance(secret, dict):
            raise InvalidAccountError(f"{self._mount}/{path} holds no fields")
        return secret, mapping(data.get("metadata")) if v2 else {}

    def _walk(self, folder: str, depth: int) -> Iterator[str]:
        path = f"{self._prefix}/{folder}".rstrip("/")
        v2 = self._engine.version(Operation.LIST) > 1
        try:
            answer = self._session.call(
                Operation.LIST,
                f"{self._mount}/{path}",
                lambda client: (client.secrets.kv.v2 if v2 else client.secrets.kv.v1).list_secrets(
                    path, mount_point=self._mount
                ),
            )
        except VaultError as error:
            if error.says_nothing_is_there:
                return  # an empty folder
            if error.status == requests.codes.forbidden and depth:
                # whoever is in it and known stays, for absence from a LIST removes nobody
                if path not in self._refused:
                    log.warning("accounts.synced", folder=path, error=str(error))
                self._refused.add(path)
                return
            raise
        self._refused.discard(path)
        keys = mapping(answer.get("data")).get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise OddAnswerError
        for key in keys:
            if not key.endswith("/"):
                yield folder + key
            elif depth < _DEEPEST:
                yield from self._walk(folder + key, depth + 1)
