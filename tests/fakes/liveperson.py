"""A LivePerson in memory: the look-up of the Domain API and the token request of Sentinel.

tests/ports runs the same contract tests on both, and on the real parts with the LivePerson of the sandbox.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random, SystemRandom
from uuid import UUID

from pydantic import SecretStr

from sandbox.faults import Fault, Faults, Service
from sandbox.liveperson import Credentials
from tests import builders
from tests.fakes.clock import HOUR, Clock, nothing
from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.unchecked import TokenResponse


@dataclass
class _App:
    secret: str = field(repr=False)
    last_token: str = field(default="", repr=False)
    last_end: datetime | None = None


@dataclass
class _Customer:
    region: str
    apps: dict[str, _App] = field(default_factory=dict)


class FakeLivePerson:
    """Look-up and Sentinel at once; a test sets it up like sandbox.liveperson.LivePerson.

    Of the faults it knows those that make a difference to a caller of the Protocols.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        token_life: timedelta = HOUR,
        regions: tuple[str, ...] = ("va", "lo"),
        random: Random | None = None,
    ) -> None:
        """:param random: where ids and secrets come from; None = the system."""
        self.clock = clock
        self._random = random or SystemRandom()
        self.token_life = token_life
        self.faults = Faults()
        self.domain_api = "api.liveperson.test"
        self.hosts = {region: f"{region}.sentinel.liveperson.test" for region in regions}
        self.records = True
        """Record `requests` and `timeouts`; a run of years has no room for them."""
        self.requests: list[tuple[Service, str]] = []
        """Service and account_id of each request."""
        self.reached: list[str] = []
        """Hosts that were asked for nothing but their clock."""
        self.timeouts: list[timedelta] = []
        """The timeout of each of these requests."""
        self.at_request: Callable[[str, str], object] = nothing
        self.at_answer: Callable[[str, str], object] = nothing
        self.at_delay: Callable[[timedelta], object] = nothing
        """Lets a caller wait, for a slow service, or for its timeout where the service hangs."""
        self.at_token: Callable[[str, Account, datetime], object] = nothing
        """Called with each token that is handed out, and Sentinel's clock then."""
        self._customers: dict[str, _Customer] = {}
        self._mints: Counter[str] = Counter()

    # as sandbox.liveperson has it

    def move(self, account_id: str, region: str) -> None:
        """Move the account to another region from now on."""
        self._customers[account_id].region = region

    def add_account(self, account_id: str, region: str | None = None) -> Credentials:
        customer = self._customers.setdefault(account_id, _Customer(next(iter(self.hosts))))
        customer.region = region or customer.region
        credentials = Credentials(str(UUID(int=self._random.getrandbits(128))), self._secret())
        customer.apps[credentials.client_id] = _App(credentials.client_secret)
        return credentials

    def rotate(self, account_id: str, client_id: str) -> Credentials:
        credentials = Credentials(client_id, self._secret())
        self._customers[account_id].apps[client_id].secret = credentials.client_secret
        return credentials

    def prepare(self, client_id: str) -> Credentials:
        """Make credentials that count from `accept` on; until then the old client_secret does."""
        return Credentials(client_id, self._secret())

    def accept(self, account_id: str, credentials: Credentials) -> None:
        self._customers[account_id].apps[credentials.client_id].secret = credentials.client_secret

    def remove(self, account_id: str) -> None:
        del self._customers[account_id]

    def host_of(self, account_id: str) -> str:
        return self.hosts[self._customers[account_id].region]

    def mints(self, account_id: str | None = None) -> int:
        return self._mints.total() if account_id is None else self._mints[account_id]

    # the Protocols

    def request_token(self, account: Account, host: str, timeout: timedelta) -> TokenResponse:
        fault = self._request("sentinel", account.account_id, host, timeout)
        if fault.status is not None:
            raise _refusal(Stage.SENTINEL, fault.status, fault)
        if fault.answer is not None:
            raise RefreshError(
                Stage.SENTINEL, Kind.TRANSIENT, f"{host} answers 200 without an access_token", status=200
            )
        customer = self._customers.get(account.account_id)
        if customer is None or self.hosts[customer.region] != host:
            raise _refusal(Stage.SENTINEL, 404)
        app = customer.apps.get(account.client_id)
        if app is None or app.secret != account.client_secret.get_secret_value():
            raise _refusal(Stage.SENTINEL, 401)
        now = self.clock.now() + fault.skew
        if not fault.same_token or app.last_end is None or app.last_end <= now:
            app.last_end = now + self.token_life
            app.last_token = self._token(account, now, fault)
        self._mints[account.account_id] += 1
        token = app.last_token  # a callback below may ask for another
        self.at_token(token, account, now)
        self.at_answer("sentinel", account.account_id)
        if fault.cut:
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, f"{host}: connection lost")
        return TokenResponse(SecretStr(token), "Bearer", None if fault.no_date else now)

    def reach(self, host: str, timeout: timedelta) -> datetime | None:
        fault = self.faults.take("clock", "", host)
        if fault.refuse or fault.hang or fault.delay >= timeout.total_seconds():
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, f"{host}: no answer")
        self.reached.append(host)
        return None if fault.no_date else self.clock.now() + fault.skew

    def look_up(self, account_id: str, timeout: timedelta) -> object:
        fault = self._request("domain", account_id, self.domain_api, timeout)
        if fault.status is not None:
            raise _refusal(Stage.DOMAIN, fault.status)
        if fault.answer is not None:
            try:
                answer = json.loads(fault.answer)
            except ValueError:
                raise RefreshError(Stage.DOMAIN, Kind.TRANSIENT, "no JSON", status=200) from None
            if not answer.get("baseURI"):
                raise RefreshError(Stage.DOMAIN, Kind.PERMANENT, "no Sentinel", status=200)
            return answer["baseURI"]
        customer = self._customers.get(account_id)
        if customer is None:
            raise _refusal(Stage.DOMAIN, 404)
        self.at_answer("domain", account_id)
        return self.hosts[customer.region]

    def _request(self, service: Service, account_id: str, host: str, timeout: timedelta) -> Fault:
        if self.records:
            self.requests.append((service, account_id))
            self.timeouts.append(timeout)
        self.at_request(service, account_id)
        fault = self.faults.take(service, account_id, host)
        late = fault.hang or fault.delay >= timeout.total_seconds()
        if late or fault.delay:
            self.at_delay(timeout if late else timedelta(seconds=fault.delay))
        if fault.refuse or late:
            if service == "domain":
                raise RefreshError(Stage.DOMAIN, Kind.TRANSIENT, f"{host}: no answer")
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, f"{host}: no answer", host=host, timed_out=late)
        return fault

    def _secret(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _token(self, account: Account, now: datetime, fault: Fault) -> str:
        iat = int(now.timestamp())
        exp = iat + int(self.token_life.total_seconds())
        claims = {**builders.CLAIMS, "aud": account.account_id, "azp": account.client_id, "exp": exp, "iat": iat}
        header = {**builders.HEADER, **fault.header}
        return builders.compact_jws(json.dumps(header), json.dumps({**claims, **fault.claims}))


def _refusal(stage: Stage, status: int, fault: Fault | None = None) -> RefreshError:
    retry_after = fault.headers.get("Retry-After") if fault else None
    return RefreshError(
        stage,
        Kind.of(stage, status),
        f"answers {status}",
        status=status,
        retry_after=timedelta(seconds=int(retry_after)) if retry_after else None,
    )
