"""The accounts: LIST and read below the accounts prefix. The worker never writes there."""

from collections.abc import Iterator

import requests

from worker.core import account
from worker.core.account import Account
from worker.core.errors import AccountGoneError, InvalidAccountError
from worker.vault.adapter import OddAnswerError, VaultError, mapping
from worker.vault.session import Operation, VaultSession

_DEEPEST = 8


class VaultAccounts:
    def __init__(self, session: VaultSession, *, mount: str, prefix: str) -> None:
        self._session = session
        self._mount = mount
        self._prefix = prefix

    def names(self) -> frozenset[str]:
        """Every account's name, at any depth."""
        return frozenset(self._walk("", depth=0))

    def read(self, name: str) -> Account:
        """The account with its credentials, for one refresh.

        AccountGoneError, AccountDisabledError, InvalidAccountError, or VaultError.
        """
        account.require_name(name)
        path = f"{self._prefix}/{name}"
        try:
            answer = self._session.call(
                Operation.READ_ACCOUNT,
                f"{self._mount}/{path}",
                lambda client: client.secrets.kv.v2.read_secret_version(
                    path, mount_point=self._mount, raise_on_deleted_version=True
                ),
            )
        except VaultError as error:
            if error.status == requests.codes.not_found:
                raise AccountGoneError(f"there is no secret at {self._mount}/{path}") from error
            raise
        secret = mapping(answer.get("data")).get("data")
        if not isinstance(secret, dict):
            raise InvalidAccountError(f"{self._mount}/{path} holds no fields")
        return account.parse(name, secret)

    def _walk(self, folder: str, depth: int) -> Iterator[str]:
        path = f"{self._prefix}/{folder}".rstrip("/")
        try:
            answer = self._session.call(
                Operation.LIST,
                f"{self._mount}/{path}",
                lambda client: client.secrets.kv.v2.list_secrets(path, mount_point=self._mount),
            )
        except VaultError as error:
            if error.status == requests.codes.not_found:
                return  # an empty folder
            raise
        keys = mapping(answer.get("data")).get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise OddAnswerError
        for key in keys:
            if not key.endswith("/"):
                yield folder + key
            elif depth < _DEEPEST:
                yield from self._walk(folder + key, depth + 1)
