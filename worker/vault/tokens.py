"""The tokens: what is stored, and the write that never overwrites what it has not seen."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import requests
from pydantic import SecretStr

from worker.core.account import check_name
from worker.core.appjwt import AppJWT
from worker.core.errors import CasMismatchError, ForeignSecretError
from worker.core.unchecked import Stored
from worker.vault.adapter import OddAnswerError, VaultError, mapping
from worker.vault.mount import KvMount
from worker.vault.session import Operation, VaultSession

MANAGED_BY = "appjwt-worker"
_MAX_VERSIONS = 5
_LEAST_KEPT = timedelta(hours=1)
_CAS_MISMATCH = "check-and-set parameter did not match"


class VaultTokens:
    def __init__(self, session: VaultSession, *, mount: str, prefix: str) -> None:
        self._session = session
        self._mount = mount
        self._engine = KvMount(session, mount)
        self._prefix = prefix

    def path(self, name: str) -> str:
        """For people and log lines."""
        return f"{self._mount}/{self._prefix}/{name}"

    def engine(self) -> str:
        """What is at the mount, for people; VaultError unless it is KV version 2."""
        version = self._engine.version(Operation.READ_TOKEN)
        if version < 2:  # noqa: PLR2004
            raise VaultError(
                f"{self._mount} is KV version {version}, which has no check-and-set: tokens need KV version 2",
                status=requests.codes.bad_request,
            )
        return f"{self._mount} is KV version {version}"

    def read(self, name: str) -> Stored:
        """What is stored; ForeignSecretError if it is not ours, InvalidAccountError for what is no name, VaultError."""
        check_name(name)
        self.engine()
        none: int | None = None
        try:
            answer = self._session.call(
                Operation.READ_TOKEN,
                self.path(name),
                lambda client: client.secrets.kv.v2.read_secret_version(
                    self._below(name), mount_point=self._mount, raise_on_deleted_version=True
                ),
            )
        except VaultError as error:
            # a version that was deleted or ran out is a 404 too, but with its metadata
            if error.status != requests.codes.not_found:
                raise
            answer = error.body
            none = 0
        secret = mapping(mapping(answer).get("data"))
        data, metadata = mapping(secret.get("data")), mapping(secret.get("metadata"))
        version = metadata.get("version", none)
        if not isinstance(version, int):
            raise OddAnswerError
        notes = mapping(metadata.get("custom_metadata"))
        marked = notes.get("managed_by") == MANAGED_BY
        if version and not marked and data.get("managed_by") != MANAGED_BY:
            raise ForeignSecretError(
                f"{self.path(name)} holds a secret that is not ours",
                f"vault kv metadata put -mount={self._mount} -custom-metadata=managed_by={MANAGED_BY} "
                f"{self._below(name)}",
            )
        token, host, refresh_at = (data.get(key) for key in ("access_token", "sentinel_host", "refresh_at"))
        return Stored(
            version=version,
            raw=SecretStr(token) if isinstance(token, str) else None,
            host=host if isinstance(host, str) else None,
            refresh_at=refresh_at if isinstance(refresh_at, str) else None,
            marked=marked,
            kept_for=_kept_for(metadata),
            now=self._session.now(),
            notes=notes,
        )

    def write(self, name: str, token: AppJWT, beside: Mapping[str, str], replaces: Stored) -> int:
        """Write the token and what is told beside it, over exactly what was read; the new version's number.

        CasMismatchError if it is no longer what was read, VaultError; after one without status the outcome is unknown.
        """
        if not (replaces.marked and replaces.kept_for > token.lifetime):
            self._settle(name, token.lifetime)
        data = {
            "access_token": token.raw.get_secret_value(),
            **beside,
            "managed_by": MANAGED_BY,
        }
        try:
            answer = self._session.call(
                Operation.WRITE_TOKEN,
                self.path(name),
                lambda client: client.secrets.kv.v2.create_or_update_secret(
                    self._below(name), data, cas=replaces.version, mount_point=self._mount
                ),
            )
        except VaultError as error:
            if error.status == requests.codes.bad_request and _CAS_MISMATCH in str(error):
                raise CasMismatchError(str(error)) from error
            raise
        version = mapping(answer.get("data")).get("version")
        if not isinstance(version, int):
            raise OddAnswerError
        return version

    def _settle(self, name: str, lifetime: timedelta) -> None:
        """Set the metadata before the data: delete_version_after does not reach back to a version already there."""
        settings = {
            "max_versions": _MAX_VERSIONS,
            "delete_version_after": f"{int((lifetime + max(lifetime, _LEAST_KEPT)).total_seconds())}s",
            "custom_metadata": {"managed_by": MANAGED_BY},
        }
        url = f"/v1/{self._mount}/metadata/{self._below(name)}"
        patch = {"Content-Type": "application/merge-patch+json"}
        try:
            # POST would replace other people's custom_metadata; PATCH does not know a path that is new
            self._call_metadata(name, "patch", url, patch, settings)
        except VaultError as error:
            if error.status != requests.codes.not_found:
                raise
            self._call_metadata(name, "post", url, {}, settings)

    def _call_metadata(
        self, name: str, method: str, url: str, headers: dict[str, str], settings: dict[str, Any]
    ) -> None:
        self._session.call(
            Operation.WRITE_METADATA,
            self.path(name),
            lambda client: client.adapter.request(method, url, headers=headers, json=settings),
        )

    def _below(self, name: str) -> str:
        return f"{self._prefix}/{name}"


def _kept_for(metadata: Mapping[str, Any]) -> timedelta:
    try:
        return datetime.fromisoformat(metadata["deletion_time"]) - datetime.fromisoformat(metadata["created_time"])
    except (KeyError, TypeError, ValueError):
        return timedelta(0)
