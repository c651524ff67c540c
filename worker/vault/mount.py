"""A KV mount, and which version of the engine is there."""

from typing import Any

import hvac
import requests

from worker.vault.adapter import OddAnswerError, VaultError, mapping
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

_QUESTION = "/v1/sys/internal/ui/mounts/"


class KvMount:
    def __init__(self, session: VaultSession, name: str) -> None:
        self._session = session
        self._name = name
        self._version: int | None = None

    def version(self, operation: Operation) -> int:
        """1 or 2, asked once: on a v1 mount a v2 path would work, and mean another. VaultError if there is no KV.

        :param operation: for which it is asked.
        """
        if self._version is None:
            answer = self._session.call(operation, f"sys/internal/ui/mounts/{self._name}", self._describe)
            data = mapping(answer.get("data"))
            version = mapping(data.get("options")).get("version", "1")
            if data.get("type") not in ("kv", "generic"):
                text = f"{self._name} is no KV mount but {data.get('type')}"
                raise VaultError(text, status=requests.codes.bad_request)
            if version not in ("1", "2"):
                raise OddAnswerError
            self._version = int(version)
        return self._version

    def forget(self) -> None:
        """Ask anew: v1 may be made v2 while we run."""
        self._version = None

    def _describe(self, client: hvac.Client) -> Any:
        """What Vault says of the mount."""
        namespace = client.adapter.namespace
        try:
            return client.adapter.get(_QUESTION + self._name)
        except VaultError as error:
            if error.status != requests.codes.forbidden or not namespace or "/" not in self._name:
                raise
            # of a child's mount OpenBao tells nothing inside a namespace, whatever the policy; outside it does
            return client.adapter.outside().get(f"{_QUESTION}{namespace.strip('/')}/{self._name}")
