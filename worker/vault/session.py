"""The one way to Vault: a managed login, every exchange bounded, every error translated once.

What the secrets mean is left to accounts.py and tokens.py.
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import hvac
import requests
import structlog

from worker import net
from worker.core.account import join_path
from worker.core.errors import Kind, Stage, ThrottledError
from worker.core.redact import redacted
from worker.vault.adapter import VaultAdapter
from worker.vault.errors import RequestFailure, VaultError, mapping
from worker.vault.gate import Gate
from worker.vault.login import Login
from worker.vault.managed_login import ManagedLogin
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use

_HEALTH: dict[int | None, tuple[str, str]] = {
    472: ("it is a secondary for disaster recovery", "set vault.address to the primary cluster"),
    473: ("it is a performance standby", "set vault.address to the active node"),
    474: ("it is a standby cut off from the active node", "see the network between Vault's nodes"),
    501: ("it is not initialised", "vault operator init"),
    503: ("it is sealed", "vault operator unseal"),
    530: ("it was removed from its cluster", "take it out of what vault.address leads to, or let it join again"),
}
_NAMESPACE_IGNORED: Final = (
    "vault.namespace is ignored: Vault's Community edition has no namespaces, and every path is one of the root's"
)

_WRITES = frozenset({Operation.WRITE_TOKEN, Operation.WRITE_METADATA})
_WRITE_CAPABILITIES = {"patch": {"patch"}}
"""By HTTP method. Others need create and update, since the secret may exist or not."""
_PARAMETERS_HINT = "the policy grants {} here: see its allowed_parameters, denied_parameters and required_parameters"

_NUMBER = re.compile(r"\b\d[\w.]*")
"""A number or a duration such as 1h2m3s."""
_MAX_WARNINGS: Final = 100
"""Different warnings that are reported, at most: a warning may quote something else at each request."""

log = structlog.get_logger()

_CLOCK_TOLERANCE: Final = 2.0
"""Seconds: the Date header has no fractions, and servers behind one address differ a little."""


@dataclass(frozen=True, slots=True)
class _ClockSample:
    """Vault's clock, by the Date of an answer."""

    date: datetime
    at: float
    """The steady moment of the answer."""
    wall: float
    """This machine's wall clock then."""
    duration: float
    """Seconds from the request to the answer: the Date is uncertain by so much."""


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
        self.address: Final = address
        self.namespace: Final = (namespace or "").strip("/")
        self._clock = clock
        self.outage: Final = Outage(address, clock)
        self._clock_sample: _ClockSample | None = None
        self.on_clock_jump: Callable[[float, bool], object] = lambda *_: None
        """Called with the seconds by which Vault's clock is off its forecast, and whether the process was paused."""
        self.on_request: Callable[[str, int | None, float], object] = lambda *_: None
        """Called with the operation, the answer's status (None = none came) and the seconds it took."""
        self.min_remaining: Callable[[], float] = lambda: math.inf
        """Returns the seconds until the first token of the running attempts expires."""
        self._gates: dict[str, Gate] = {}
        """By mount."""
        self._last_response = threading.local()
        self._warnings: set[str] = set()
        """Vault's own warnings that were reported, without their figures."""
        self._latest_health: Mapping[str, Any] = {}
        new_client = partial(
            hvac.Client,
            url=address,
            token="",  # with None hvac would look into the environment and into the home directory
            session=http,
            namespace=namespace,
            timeout=timeout.total_seconds(),
            adapter=VaultAdapter,
            on_response=self._on_response,
            on_warnings=self._log_warnings,
        )
        self._client = new_client()
        """Without a login."""
        self.login = ManagedLogin(
            login,
            new_client,
            outage=self.outage,
            observe=self._observe,
            clock=clock,
            on_first_login=self._check_namespace,
        )

    def call(
        self, operation: Operation, mount: str, path: str, request: Callable[[hvac.Client], Any]
    ) -> dict[str, Any]:
        """Make one request to a mount, logged in and within the mount's rate limit.

        Raise VaultError, which names the login or the operation and path; ThrottledError if a write waited too long for
        the rate limit.

        :param path: below the mount; for the error's text only.
        """
        gate = self._gates.get(mount) or self._gates.setdefault(mount, self._new_gate(mount))
        return gate.call(operation, lambda: self._send(operation, join_path(mount, path), request))

    def _new_gate(self, mount: str) -> Gate:
        return Gate(mount, clock=self._clock, min_remaining=lambda: self.min_remaining())  # noqa: PLW0108 - set later

    def _send(self, operation: Operation, path: str, request: Callable[[hvac.Client], Any]) -> dict[str, Any]:
        use = Use.WRITE if operation in _WRITES else Use.READ
        stage = Stage.CREDENTIALS if operation is Operation.READ_ACCOUNT else Stage.VAULT
        purpose = f"{operation} {path}"

        def exchange(client: hvac.Client) -> Any:
            try:
                with self._observe(operation):
                    return request(client)
            except RequestFailure as failure:
                if failure.is_throttled:
                    raise ThrottledError(stage, f"{purpose}: {failure}", failure.retry_after) from failure
                raise

        try:
            answer = self.login.call(exchange)
        except RequestFailure as failure:
            self._record_failure(use, VaultError.of(failure, purpose, stage=stage))  # before another request is made
            hint = self._forbidden_by_parameters(failure) if use is Use.WRITE else None
            raise VaultError.of(failure, purpose, stage=stage, hint=hint) from failure
        except VaultError as error:  # the login's
            self._record_failure(use, error)
            raise
        self.outage.record_success(use)
        return answer if isinstance(answer, dict) else {}

    def _record_failure(self, use: Use, error: VaultError) -> None:
        if error.kind is Kind.TRANSIENT:
            self.outage.record_failure(use, error)
        else:  # Vault works, and refused this request
            self.outage.record_success(use)

    def capabilities(self, *paths: str) -> Mapping[str, Collection[str]]:
        """Return what the login may do at each of these paths; raises VaultError."""
        answer = self.call(
            Operation.READ_ACCOUNT,
            "sys",
            "capabilities-self",
            lambda client: client.sys.get_capabilities(paths=list(paths)),
        )
        return {path: answer.get(path) or () for path in paths}

    def _forbidden_by_parameters(self, failure: RequestFailure) -> str | None:
        """Return the hint for a refused write whose capabilities are granted; None for any other failure."""
        if failure.status != requests.codes.forbidden or failure.request is None:
            return None
        method, path = failure.request
        needed = _WRITE_CAPABILITIES.get(method, {"create", "update"})
        with contextlib.suppress(VaultError):
            if needed <= {*self.capabilities(path)[path]}:
                return _PARAMETERS_HINT.format(" and ".join(sorted(needed)))
        return None

    @property
    def throttled_until(self) -> float:
        """Return the steady moment until which a rate limit delays requests, as far as is known."""
        return max((gate.closed_until for gate in list(self._gates.values())), default=-math.inf)

    def close(self) -> None:
        """Log the rate limiting that goes on, and revoke the login if it is ours."""
        for gate in list(self._gates.values()):
            gate.close()
        self.login.close()

    def health(self) -> str:
        """Return Vault's version and role, asked without a login; raises VaultError if Vault cannot be used."""
        try:
            # health is the server's: a namespace has none
            answer = self._client.adapter.without_namespace().get(
                "/v1/sys/health", params={"standbyok": "true", "perfstandbyok": "true"}
            )
        except RequestFailure as failure:
            # a gateway may send a 503 or 530 of its own
            known = _HEALTH.get(failure.status) if "initialized" in mapping(failure.body) else None
            hint, remedy = known or (None, None)
            raise VaultError.of(failure, None, hint=hint, remedy=remedy) from failure
        self._latest_health = mapping(answer)
        return f"version {answer.get('version')}, {'standby' if answer.get('standby') else 'active'}"

    def namespace_fault(self) -> str | None:
        """Return what is wrong with the namespace, by the latest health; None = nothing is."""
        is_ignored = self.namespace and self._latest_health.get("enterprise") is False  # OpenBao has no such field
        return _NAMESPACE_IGNORED if is_ignored else None

    def _check_namespace(self) -> None:
        if self.namespace:
            with contextlib.suppress(VaultError):
                self.health()
        if fault := self.namespace_fault():
            log.warning("vault.warning", warning=fault)

    def now(self) -> datetime:
        """Return Vault's time, by the Date of its latest answer; the wall clock's until one came."""
        if self._clock_sample is None:
            return datetime.now(UTC)
        sample = self._clock_sample
        return sample.date + timedelta(seconds=self._clock() - sample.at)

    @contextlib.contextmanager
    def _observe(self, operation: Operation) -> Iterator[None]:
        self._last_response.status, started = None, self._clock()
        try:
            yield
        finally:
            self.on_request(operation, self._last_response.status, self._clock() - started)

    def _log_warnings(self, path: str, warnings: Iterable[str], secrets: Iterable[str]) -> None:
        """Report Vault's own warnings, each once however its figures differ."""
        for warning in warnings:
            kind = _NUMBER.sub("0", warning)
            if kind not in self._warnings and len(self._warnings) < _MAX_WARNINGS:
                self._warnings.add(kind)
                log.warning("vault.warning", path=path, warning=redacted(warning, *secrets))

    def _on_response(self, response: requests.Response) -> None:
        self._last_response.status = response.status_code
        date, at = net.server_time(response), self._clock()
        if date is None:
            return
        duration = response.elapsed.total_seconds()
        previous, sample = self._clock_sample, _ClockSample(date, at, time.time(), duration)
        self._clock_sample = sample
        if previous:
            passed = at - previous.at
            jump = (date - previous.date).total_seconds() - passed
            tolerance = _CLOCK_TOLERANCE + max(duration, previous.duration)
            if abs(jump) > tolerance:
                wall_jump = sample.wall - previous.wall - passed
                self.on_clock_jump(jump, jump > 0 and abs(wall_jump - jump) <= tolerance)
