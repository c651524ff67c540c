"""The tokens in Vault: what is stored at an account's path, and the write that never overwrites what it has not seen.

The check-and-set write rules: data first, over exactly the version that was read; then the path's metadata,
and only after a data write that was accepted, for a read may be a standby's old answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import requests
import structlog
from pydantic import SecretStr

from worker.core.account import check_name, join_path
from worker.core.appjwt import AppJWT
from worker.core.errors import RefreshError, UnmanagedSecretError
from worker.core.status import STATUS_KEYS, is_our_status
from worker.core.unchecked import StoredSecret
from worker.vault.kv import Kv, MetadataPatch, SecretVersion

MANAGED_BY: Final = "appjwt-worker"
_MARK: Final = MetadataPatch({"managed_by": MANAGED_BY}, max_versions=5)
_MARK_WITHIN: Final = 60.0
"""Seconds from the start of the data write, which may wait half a minute for a rate limit and 10 s for Vault.

Later the process was suspended: meanwhile somebody else may have written at the path, which the mark would make ours.
"""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Written:
    """A version that check-and-set accepted."""

    version: int
    retention: timedelta | None
    """How long Vault keeps it before deleting it by itself; None = for ever."""
    request_id: str | None
    """Of the write, as in Vault's audit log."""


class TokenStore:
    def __init__(self, kv: Kv, *, prefix: str, clock: Callable[[], float]) -> None:
        self._kv = kv
        self._prefix = prefix
        self._clock = clock

    def path(self, name: str) -> str:
        """Return the token's path with its mount, for people and log lines."""
        return f"{self._kv.mount}/{self._path_in_mount(name)}"

    def read(self, name: str) -> StoredSecret:
        """Return what is stored. UnmanagedSecretError if it is not ours, InvalidAccountError (name), VaultError."""
        check_name(name)
        found = self._kv.get(self._path_in_mount(name))
        custom_metadata = found.custom_metadata if found.number else self._metadata_without_data(name)
        data: Mapping[str, object] = found.data or {}
        managed = custom_metadata.get("managed_by") == MANAGED_BY
        if found.number and not managed and data.get("managed_by") != MANAGED_BY:
            raise self._unmanaged(name, custom_metadata)
        token, host, refresh_at = (data.get(key) for key in ("access_token", "sentinel_host", "refresh_at"))
        return StoredSecret(
            version=found.number,
            raw=SecretStr(token) if isinstance(token, str) else None,
            sentinel_host=host if isinstance(host, str) else None,
            refresh_at=refresh_at if isinstance(refresh_at, str) else None,
            managed=managed,
            deletion_time=found.deletion_time if found.data is not None else None,
            now=found.now,
            custom_metadata=custom_metadata,
            has_others_data=found.data is not None and data.get("managed_by") != MANAGED_BY,
        )

    def write(self, name: str, token: AppJWT, fields: Mapping[str, str], replaces: StoredSecret) -> Written:
        """Write the token and its fields over exactly what was read, and mark a path that lacks our mark.

        CasMismatchError if another version is there, VaultError; after one without status the outcome is unknown.
        """
        data = {"access_token": token.raw.get_secret_value(), **fields, "managed_by": MANAGED_BY}
        started = self._clock()
        written = self._kv.put(self._path_in_mount(name), data, replaces.version)
        if not replaces.managed and self._clock() - started <= _MARK_WITHIN:
            self._mark(name)
        return Written(written.number, _retention(written), written.request_id)

    def write_status(self, name: str, patch: Mapping[str, str | None]) -> None:
        """Merge the account's state into the metadata of its token's path. A None removes its key."""
        self._kv.patch_metadata(self._path_in_mount(name), MetadataPatch(patch), create=True)

    def clear_status(self, name: str) -> None:
        """Remove our state from a path that proved to be somebody else's."""
        self._kv.patch_metadata(self._path_in_mount(name), MetadataPatch(dict.fromkeys(STATUS_KEYS)))

    def retention_command(self, name: str | None = None) -> str:
        """Return the command that makes Vault keep the token until it is replaced; None = every token of the mount."""
        mount = f"vault write {self._kv.mount}/config delete_version_after=0s"
        if name is None:
            return mount
        path = f"vault kv metadata put -mount={self._kv.mount} -delete-version-after=0s {self._path_in_mount(name)}"
        return f"{path}; for the whole mount: {mount}"

    def _metadata_without_data(self, name: str) -> Mapping[str, str]:
        """Return the custom_metadata of a path that never had a version, none if the policy does not show it."""
        try:
            return self._kv.get_metadata(self._path_in_mount(name))
        except RefreshError as error:
            if error.status != requests.codes.forbidden:
                raise
            return {}

    def _mark(self, name: str) -> None:
        """Mark the path as ours. Until that succeeds our data marks it, and the next refresh tries again."""
        try:
            self._kv.patch_metadata(self._path_in_mount(name), _MARK)
        except RefreshError as error:
            log.warning("vault.warning", account=name, vault_path=self.path(name), warning=str(error))

    def _unmanaged(self, name: str, custom_metadata: Mapping[str, str]) -> UnmanagedSecretError:
        return UnmanagedSecretError(
            f"{self.path(name)} holds a secret that is not ours",
            f"vault kv metadata patch -mount={self._kv.mount} "
            f"-custom-metadata=managed_by={MANAGED_BY} {self._path_in_mount(name)}",
            has_stale_status=is_our_status(custom_metadata),
        )

    def _path_in_mount(self, name: str) -> str:
        return join_path(self._prefix, name)


def _retention(written: SecretVersion) -> timedelta | None:
    return written.deletion_time - written.created if written.deletion_time and written.created else None
