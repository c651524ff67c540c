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
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

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
        answer = self._read_newest(name)
        secret = mapping(answer.get("data"))
        data, metadata = mapping(secret.get("data")), mapping(secret.get("metadata"))
        version = metadata.get("version")
        if not isinstance(version, int):
            raise OddAnswerError
        notes = mapping(metadata.get("custom_metadata")) if version else self._notes_without_data(name)
        marked = notes.get("managed_by") == MANAGED_BY
        if version and not marked and data.get("managed_by") != MANAGED_BY:
            raise self._foreign(name)
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

        CasMismatchError if it is no longer what was read, ForeignSecretError if a stranger was faster at a new path,
        VaultError; after one without status the outcome is unknown.
        """
        settled = replaces.marked and replaces.kept_for > token.lifetime
        if not settled:  # before the data, for delete_version_after does not reach back to a version already there
            self.settle(name, token.lifetime, replaces.kept_for)
        data = {
            "access_token": token.raw.get_secret_value(),
            **beside,
            "managed_by": MANAGED_BY,
        }
        try:
            version, kept_for = self._put(name, data, replaces.version)
        except CasMismatchError:
            if not settled:  # the mark there may be the one that we just set
                self._give_back_to_stranger(name)
            raise
        if settled and timedelta(0) < kept_for <= token.lifetime:  # shortened by somebody: it would go while it lives
            self.settle(name, token.lifetime, kept_for)
            version, _ = self._put(name, data, version)
        return version

    def settle(self, name: str, lifetime: timedelta, kept_for: timedelta) -> None:
        """Give the token's path its settings and our mark.

        :param kept_for: what is there is kept so long, and the next is not kept for less: it may live longer again.
        """
        keep = max(lifetime + max(lifetime, _LEAST_KEPT), kept_for)
        self._patch_metadata(
            name,
            {
                "max_versions": _MAX_VERSIONS,
                "delete_version_after": f"{int(keep.total_seconds())}s",
                "custom_metadata": {"managed_by": MANAGED_BY},
            },
        )

    def note(self, name: str, news: Mapping[str, str | None]) -> None:
        """Tell this in the metadata of the token's path; a key that is None goes."""
        self._patch_metadata(name, {"custom_metadata": news})

    def _put(self, name: str, data: Mapping[str, str], cas: int) -> tuple[int, timedelta]:
        """The new version's number, and how long it will be kept."""
        try:
            answer = self._session.call(
                Operation.WRITE_TOKEN,
                self.path(name),
                lambda client: client.secrets.kv.v2.create_or_update_secret(
                    self._below(name), data, cas=cas, mount_point=self._mount
                ),
            )
        except VaultError as error:
            if error.status == requests.codes.bad_request and _CAS_MISMATCH in str(error):
                raise CasMismatchError(str(error)) from error
            raise
        metadata = mapping(answer.get("data"))
        version = metadata.get("version")
        if not isinstance(version, int):
            raise OddAnswerError
        return version, _kept_for(metadata)

    def _give_back_to_stranger(self, name: str) -> None:
        """What came between our read and our first settings of the path may be a stranger's: the mark says nothing."""
        answer = self._read_newest(name)
        data = mapping(mapping(answer.get("data")).get("data"))
        if data and data.get("managed_by") != MANAGED_BY:
            # PATCH would leave a duration that is set to 0 as it was; POST without custom_metadata leaves that alone
            self._write_metadata(name, "post", {}, {"max_versions": 0, "delete_version_after": "0s"})
            self._patch_metadata(name, {"custom_metadata": {"managed_by": None}})
            raise self._foreign(name)

    def _read_newest(self, name: str) -> Mapping[str, Any]:
        """Vault's answer for the newest version; version 0 = nothing was ever written."""
        try:
            return self._session.call(
                Operation.READ_TOKEN,
                self.path(name),
                lambda client: client.secrets.kv.v2.read_secret_version(
                    self._below(name), mount_point=self._mount, raise_on_deleted_version=True
                ),
            )
        except VaultError as error:
            if not error.says_nothing_is_there:
                raise
            # a version that was deleted or ran out is a 404 too, but with its metadata
            return {"data": {"metadata": {"version": 0}, **mapping(mapping(error.body).get("data"))}}

    def _notes_without_data(self, name: str) -> Mapping[str, str]:
        """The custom keys of a path that never had a version; none where the policy does not let us see them."""
        try:
            answer = self._session.call(
                Operation.READ_TOKEN, self.path(name), lambda client: client.adapter.get(self._metadata_url(name))
            )
        except VaultError as error:
            if error.status not in (requests.codes.not_found, requests.codes.forbidden):
                raise
            return {}
        return mapping(mapping(answer.get("data")).get("custom_metadata"))

    def _patch_metadata(self, name: str, settings: Mapping[str, Any]) -> None:
        patch = {"Content-Type": "application/merge-patch+json"}
        try:
            # POST would replace other people's custom_metadata; PATCH does not know a path that is new
            self._write_metadata(name, "patch", patch, settings)
        except VaultError as error:
            if error.status != requests.codes.not_found:
                raise
            kept = {key: value for key, value in settings["custom_metadata"].items() if value is not None}
            self._write_metadata(name, "post", {}, {**settings, "custom_metadata": kept})

    def _write_metadata(self, name: str, method: str, headers: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self._session.call(
            Operation.WRITE_METADATA,
            self.path(name),
            lambda client: client.adapter.request(method, self._metadata_url(name), headers=headers, json=settings),
        )

    def _foreign(self, name: str) -> ForeignSecretError:
        return ForeignSecretError(
            f"{self.path(name)} holds a secret that is not ours",
            f"vault kv metadata patch -mount={self._mount} "
            f"-custom-metadata=managed_by={MANAGED_BY} {self._below(name)}",
        )

    def _metadata_url(self, name: str) -> str:
        return f"/v1/{self._mount}/metadata/{self._below(name)}"

    def _below(self, name: str) -> str:
        return f"{self._prefix}/{name}"


def _kept_for(metadata: Mapping[str, Any]) -> timedelta:
    try:
        return datetime.fromisoformat(metadata["deletion_time"]) - datetime.fromisoformat(metadata["created_time"])
    except (KeyError, TypeError, ValueError):
        return timedelta(0)
