"""The port to a KV mount: five calls, on version 1 or 2 of the engine. What the secrets mean is left to the stores.

`Kv` is all that accounts.py and tokens.py know of Vault; tests put a KV engine in memory in its place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import hvac
import requests

from worker.core.errors import CasMismatchError
from worker.vault.errors import RequestFailure, UnexpectedResponseError, VaultError, mapping
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

_CAS_MISMATCH: Final = "check-and-set parameter did not match"
_METADATA_CAS_REQUIRED: Final = "metadata check-and-set parameter required"
_MOUNT_INFO: Final = "/v1/sys/internal/ui/mounts/"
_MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}
_SECONDS: Final = {"h": 3600, "m": 60, "s": 1}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret."""

    number: int
    """0 = the path never had a version, or the mount is KV version 1."""
    now: datetime
    """Vault's clock when it answered."""
    data: Mapping[str, object] | None = None
    """None = there is none, or it was deleted, destroyed or ran out."""
    created: datetime | None = None
    deletion_time: datetime | None = None
    """Moment at which Vault deletes it by itself, or did; None = never."""
    custom_metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    """Of the request that was answered by this, as in Vault's audit log."""


@dataclass(frozen=True, slots=True)
class MetadataPatch:
    """Changes of a path's metadata; what is left out stays as it is."""

    custom_metadata: Mapping[str, str | None]
    """None removes a key; other keys are kept."""
    max_versions: int | None = None


class Kv(Protocol):
    """A KV mount. Every call raises VaultError where Vault refuses or gives no answer."""

    @property
    def mount(self) -> str: ...

    def version(self) -> int:
        """Return the engine's version, 1 or 2."""

    def list(self, folder: str) -> Sequence[str]:
        """Return the keys in a folder, subfolders with a slash at their end; none if there is no such folder."""

    def get(self, path: str, version: int | None = None) -> SecretVersion:
        """Return a version, by default the newest; number 0 without data where nothing is."""

    def put(self, path: str, data: Mapping[str, str], cas: int) -> SecretVersion:
        """Write a new version over version `cas` (0 = never written) and return it, without its data.

        CasMismatchError if another version is there, ThrottledError if its turn did not come in time. After a
        VaultError without status the outcome is unknown.
        """

    def get_metadata(self, path: str) -> Mapping[str, str]:
        """Return the path's custom_metadata; empty where the path has no metadata."""

    def patch_metadata(self, path: str, patch: MetadataPatch, *, create: bool = False) -> None:
        """Merge changes into the path's metadata.

        :param create: make metadata for a path that has none; without it that is a VaultError with status 404.
        """


class VaultKv:
    """A KV mount of a real Vault, by hvac."""

    def __init__(self, session: VaultSession, mount: str, *, read: Operation, only_v2: bool = False) -> None:
        """
        :param read: the operation that reads count as.
        :param only_v2: version 1 is refused: it has no check-and-set.
        """
        self._session = session
        self.mount: Final = mount
        self._read = read
        self._only_v2 = only_v2
        self._version: int | None = None
        self._may_be_truncated = False
        """A LIST of OpenBao's KV version 2, by a policy's pagination_limit."""

    def version(self) -> int:
        """Return the engine's version, asked once: on version 1 a path of version 2 works, and means another secret.

        VaultError if the mount is no KV engine.
        """
        return self._version_for(self._read)

    def retention(self) -> timedelta | None:
        """Return the mount's own delete_version_after, None = never; VaultError, with 403 without a right for it."""
        answer = self._session.call(
            self._read, self.mount, "config", lambda client: client.secrets.kv.v2.read_configuration(self.mount)
        )
        return _duration(mapping(answer.get("data")).get("delete_version_after"))

    def list(self, folder: str) -> Sequence[str]:
        return self._read_upgraded(lambda: self._list(folder), bool)

    def get(self, path: str, version: int | None = None) -> SecretVersion:
        return self._read_upgraded(
            lambda: self._get_v1(path) if self.version() == 1 else self._get_v2(path, version),
            lambda found: found.data is not None,
        )

    def put(self, path: str, data: Mapping[str, str], cas: int) -> SecretVersion:
        try:
            answer = self._call(
                Operation.WRITE_TOKEN,
                path,
                lambda kv: kv.v2.create_or_update_secret(path, data, cas=cas, mount_point=self.mount),
            )
        except VaultError as error:
            if error.status == requests.codes.bad_request and _CAS_MISMATCH in str(error):
                raise CasMismatchError(str(error)) from error
            raise
        request_id = answer.get("request_id")
        written = self._version_of(answer.get("data"), None)
        return replace(written, request_id=request_id if isinstance(request_id, str) else None)

    def get_metadata(self, path: str) -> Mapping[str, str]:
        return mapping(self._read_metadata(path).get("custom_metadata"))

    def patch_metadata(self, path: str, patch: MetadataPatch, *, create: bool = False) -> None:
        body: dict[str, Any] = {"custom_metadata": patch.custom_metadata}
        if patch.max_versions is not None:
            body["max_versions"] = patch.max_versions
        try:
            # PATCH keeps other people's custom_metadata, and knows no path that is new
            self._write_metadata("patch", path, body)
        except VaultError as error:
            if not error.is_not_found or not create:
                raise
            added = {key: value for key, value in patch.custom_metadata.items() if value is not None}
            # metadata_cas: POST replaces the whole map; whoever came in between must not lose theirs (OpenBao only)
            self._write_metadata("post", path, {**body, "custom_metadata": added, "metadata_cas": 0})

    def _read_upgraded(self, read: Callable[[], T], is_found: Callable[[T], bool]) -> T:
        """Read, once more with the version asked again where the mount may have been upgraded from version 1."""
        version = self._version
        try:
            found = read()
            if version != 1 or is_found(found):
                return found
        except VaultError as error:
            if not (error.failure and error.failure.is_wrong_version):
                raise
        self._version = None
        return read()

    def _version_for(self, operation: Operation) -> int:
        if self._version is None:
            answer = self._session.call(operation, "sys", f"internal/ui/mounts/{self.mount}", self._describe_mount)
            data = mapping(answer.get("data"))
            version = mapping(data.get("options")).get("version", "1")
            if data.get("type") not in ("kv", "generic"):
                text = f'{self.mount}: expected a KV mount, found engine "{data.get("type")}"'
                raise VaultError(text, status=requests.codes.bad_request)
            actual = str(data.get("path", "")).strip("/").removeprefix(f"{self._session.namespace}/")
            if self.mount.startswith(f"{actual}/"):
                raise self._nested_mount_error(actual, is_v2=version == "2")
            if version not in ("1", "2"):
                raise UnexpectedResponseError
            if self._only_v2 and version == "1":
                text = f"{self.mount} is KV version 1, which has no check-and-set: tokens need KV version 2"
                raise VaultError(text, status=requests.codes.bad_request)
            self._may_be_truncated = version == "2" and str(data.get("running_plugin_version")).endswith("+builtin.bao")
            self._version = int(version)
        return self._version

    def _nested_mount_error(self, actual: str, *, is_v2: bool) -> VaultError:
        """Return the error of a setting that is a path inside a mount: writes would go to other keys than meant."""
        setting = "tokens" if self._read is Operation.READ_TOKEN else "accounts"
        rest = self.mount.removeprefix(f"{actual}/")
        if is_v2 and rest.partition("/")[0] in ("data", "metadata"):  # of the API, and no part of a secret's path
            rest = rest.partition("/")[2]
        remedy = f"set {setting}.mount to {actual}" + (f", and begin {setting}.prefix with {rest}/" if rest else "")
        detail = f"{self.mount} is no mount, but a path inside the mount {actual}"
        return VaultError(f"{detail}: {remedy}", status=requests.codes.bad_request, remedy=remedy, detail=detail)

    def _write_metadata(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        try:
            self._request_metadata(Operation.WRITE_METADATA, method, path, body)
        except VaultError as error:
            if _METADATA_CAS_REQUIRED not in str(error):
                raise
            current = self._read_metadata(path).get("current_metadata_version", 0)
            self._request_metadata(Operation.WRITE_METADATA, method, path, {**body, "metadata_cas": current})

    def _read_metadata(self, path: str) -> Mapping[str, Any]:
        try:
            return mapping(self._request_metadata(self._read, "get", path, None).get("data"))
        except VaultError as error:
            if not error.is_not_found:
                raise
            return {}

    def _request_metadata(
        self, operation: Operation, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        headers = _MERGE_PATCH if method == "patch" else {}
        url = f"/v1/{self.mount}/metadata/{path}"
        return self._session.call(
            operation,
            self.mount,
            path,
            lambda client: client.adapter.request(method, url, headers=headers, json=body),
        )

    def _list(self, folder: str) -> Sequence[str]:
        url = f"/v1/{self.mount}/{'metadata/' if self._version_for(Operation.LIST) > 1 else ''}{quote(folder)}"
        page = self._list_page(url, folder, None)
        keys = dict.fromkeys(page)
        while page and self._may_be_truncated:  # no answer says whether it was
            page = [key for key in self._list_page(url, folder, page[-1]) if key not in keys]
            keys.update(dict.fromkeys(page))
        return list(keys)

    def _list_page(self, url: str, folder: str, key: str | None) -> Sequence[str]:
        params = {} if key is None else {"after": key}
        try:
            answer = self._session.call(
                Operation.LIST, self.mount, folder, lambda client: client.adapter.list(url, params=params)
            )
        except VaultError as error:
            if error.is_not_found:
                return ()
            raise
        data = answer.get("data")
        keys = data.get("keys", []) if isinstance(data, dict) else None  # OpenBao's KV v1 leaves them out
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UnexpectedResponseError
        return keys

    def _get_v2(self, path: str, version: int | None) -> SecretVersion:
        try:
            answer = self._call(
                self._read,
                path,
                lambda kv: kv.v2.read_secret_version(
                    path, version=version, mount_point=self.mount, raise_on_deleted_version=True
                ),
            )
        except VaultError as error:
            if not error.failure or not error.failure.is_not_found:
                raise
            # a version that was deleted or ran out is a 404 too, but with its metadata
            known = mapping(mapping(error.failure.body).get("data"))
            return self._version_of(known.get("metadata", {"version": 0}), None)
        secret = mapping(answer.get("data"))
        if not isinstance(secret.get("data"), dict):
            raise UnexpectedResponseError
        return self._version_of(secret.get("metadata"), secret["data"])

    def _get_v1(self, path: str) -> SecretVersion:
        try:
            answer = self._call(self._read, path, lambda kv: kv.v1.read_secret(path, mount_point=self.mount))
        except VaultError as error:
            if error.is_not_found:
                return SecretVersion(0, self._session.now())
            raise
        if not isinstance(answer.get("data"), dict):
            raise UnexpectedResponseError
        return SecretVersion(0, self._session.now(), answer["data"])

    def _call(self, operation: Operation, path: str, request: Any) -> Mapping[str, Any]:
        return self._session.call(operation, self.mount, path, lambda client: request(client.secrets.kv))

    def _version_of(self, metadata: object, data: Mapping[str, object] | None) -> SecretVersion:
        known = mapping(metadata)
        number = known.get("version")
        if not isinstance(number, int):
            raise UnexpectedResponseError
        return SecretVersion(
            number=number,
            now=self._session.now(),
            data=data,
            created=_moment(known.get("created_time")),
            deletion_time=_moment(known.get("deletion_time")),
            custom_metadata=mapping(known.get("custom_metadata")),
        )

    def _describe_mount(self, client: hvac.Client) -> Any:
        namespace = client.adapter.namespace
        try:
            return client.adapter.get(_MOUNT_INFO + self.mount)
        except RequestFailure as failure:
            if failure.status != requests.codes.forbidden or not namespace or "/" not in self.mount:
                raise
            # OpenBao describes a child namespace's mount only outside the namespace, whatever the policy
            return client.adapter.without_namespace().get(f"{_MOUNT_INFO}{namespace.strip('/')}/{self.mount}")


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:  # empty = never
        return None


def _duration(value: object) -> timedelta | None:
    """Read a duration as Go writes it, such as 1h30m0s; a negative one means never, as 0s does."""
    text = value if isinstance(value, str) and not value.startswith("-") else ""
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([hms])", text))
    return timedelta(seconds=seconds) if seconds else None
