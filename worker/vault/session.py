"""The one way to Vault: a login that is kept alive, every exchange bounded, every error translated once.

What the secrets mean is left to accounts.py and tokens.py.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import hvac
import requests

from worker import net
from worker.core.errors import Kind, Stage
from worker.vault.adapter import VaultAdapter, VaultError
from worker.vault.live_login import LiveLogin
from worker.vault.login import Login
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use

_HEALTH: dict[int | None, tuple[str, str]] = {
    501: ("it is not initialised", "vault operator init"),
    503: ("it is sealed", "vault operator unseal"),
}

_WRITES = frozenset({Operation.WRITE_TOKEN, Operation.WRITE_METADATA})


class VaultSession:
    def __init__(
        self,
        address: str,
        login: Login,
        *,
        http: requests.Session,
        namespace: str | None,
        timeout: timedelta,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._outage = Outage(address, clock)
        self._clock_sample: tuple[datetime, float] | None = None
        self.on_request: Callable[[str, int | None, float], object] = lambda *_: None
        """Called with the operation, the answer's status (None = none came) and the seconds it took."""
        self._latest = threading.local()
        # token="": with None hvac would look into the environment and into the home directory
        self._client = hvac.Client(
            url=address,
            token="",
            session=http,
            namespace=namespace,
            timeout=timeout.total_seconds(),
            adapter=VaultAdapter,
            on_answer=self._answered,
        )
        self.login = LiveLogin(login, self._client, outage=self._outage, counted=self._counted, clock=clock)

    def call(self, operation: Operation, path: str, request: Callable[[hvac.Client], Any]) -> dict[str, Any]:
        """Make one request to Vault, logged in; VaultError names the login, or operation and path.

        A login that has ended is noticed and made anew, once.
        """
        use = Use.WRITE if operation in _WRITES else Use.READ
        try:
            self.login.keep_alive()
            token = self._client.token
            try:
                answer = self._named(operation, path, request)
            except VaultError as error:
                if error.status != requests.codes.forbidden or not self.login.has_ended(token):
                    raise
                self.login.keep_alive()
                answer = self._named(operation, path, request)
        except VaultError as error:
            if error.kind is Kind.TRANSIENT:
                self._outage.failed(use, error)
            else:  # it works, and says no
                self._outage.worked(use)
            raise
        self._outage.worked(use)
        return answer if isinstance(answer, dict) else {}

    def _named(self, operation: Operation, path: str, request: Callable[[hvac.Client], Any]) -> Any:
        stage = Stage.CREDENTIALS if operation is Operation.READ_ACCOUNT else Stage.VAULT
        try:
            with self._counted(operation):
                return request(self._client)
        except VaultError as error:
            raise error.saying(f"{operation} {path}: {error}", stage=stage) from error

    @property
    def trouble(self) -> str | None:
        """What keeps Vault from being of use, in words."""
        return self._outage.error

    def health(self) -> str:
        """Vault's own word on how it is, asked without a login; VaultError if it cannot be used."""
        try:
            # it is the server's own: no namespace has one
            told = self._client.adapter.outside().get(
                "/v1/sys/health", params={"standbyok": "true", "perfstandbyok": "true"}
            )
        except VaultError as error:
            what, remedy = _HEALTH.get(error.status, (None, None))
            said = error.with_hint(what)
            said.remedy = remedy
            raise said from error
        return f"version {told.get('version')}, {'standby' if told.get('standby') else 'active'}"

    def now(self) -> datetime:
        """Vault's clock, by the Date of its latest answer; the wall clock until one came."""
        if self._clock_sample is None:
            return datetime.now(UTC)
        date, at = self._clock_sample
        return date + timedelta(seconds=self._clock() - at)

    @contextlib.contextmanager
    def _counted(self, operation: Operation) -> Iterator[None]:
        self._latest.status, began = None, self._clock()
        try:
            yield
        finally:
            self.on_request(operation, self._latest.status, self._clock() - began)

    def _answered(self, response: requests.Response) -> None:
        self._latest.status = response.status_code
        date = net.server_time(response)
        if date:
            self._clock_sample = (date, self._clock())
