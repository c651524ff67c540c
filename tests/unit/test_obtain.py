"""The source of a new token: the host, the checks of the answer, and the client_secret before the newest."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import pytest

from sandbox.faults import Fault
from sandbox.liveperson import Credentials
from tests.builders import ACCOUNT, client_secret, error_of, usable
from tests.fakes.clock import DAY, HOUR, MINUTE, SECOND
from tests.fakes.vault import ACCOUNTS
from tests.fakes.world import World
from worker.core.appjwt import AppJWT, Check, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Result
from worker.core.plan import Reason, RefreshPolicy
from worker.core.status import PREVIOUS_USED
from worker.obtain import Keys, TokenSource
from worker.refresh import Refresher


@pytest.fixture
def credentials(world: World) -> Credentials:
    """Return those of the world's account."""
    data = world.vault.kv.get(ACCOUNTS + ACCOUNT).data or {}
    return Credentials(str(data["client_id"]), str(data["client_secret"]))


def source(world: World, keys: Keys | None = None) -> TokenSource:
    return TokenSource(
        hosts=world.hosts(),
        sentinel=world.sentinel(),
        keys=keys,
        secrets=world.vault.accounts,
        policy=RefreshPolicy(0.5, 0.05, "a"),
        timeout=timedelta(seconds=10),
        clock=world.clock,
    )


# The signature


@dataclass
class Verifier:
    refusal: RefreshError | TokenRefusedError | None = None
    retained: set[str] = field(default_factory=set)
    seen: list[tuple[str, str, timedelta]] = field(default_factory=list)

    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None:
        self.seen.append((token.fingerprint, host, timeout))
        if self.refusal:
            raise self.refusal

    def retain_hosts(self, hosts: set[str]) -> None:
        self.retained = hosts


def test_where_keys_are_known_each_token_is_verified_against_those_of_its_host(world: World) -> None:
    verifier = Verifier()
    obtained = source(world, verifier).obtain(usable(world.vault.accounts.read(ACCOUNT)), Reason.MISSING, None)
    assert verifier.seen == [(obtained.token.fingerprint, world.liveperson.hosts["va"], 10 * SECOND)]


@pytest.mark.parametrize("keys", [None, Verifier()])
def test_what_was_learnt_of_a_host_that_is_not_used_any_more_is_forgotten(world: World, keys: Verifier | None) -> None:
    tokens, host = source(world, keys), world.liveperson.hosts["va"]
    world.store(
        tokens.obtain(usable(world.vault.accounts.read(ACCOUNT)), Reason.MISSING, None).token.raw.get_secret_value(),
        sentinel_host=host,
    )
    for retained in ({host}, {"another"}):
        tokens.retain_hosts(retained)
        assert keys is None or keys.retained == retained
        tokens.clocks.with_sentinel_clock(world.vault.tokens.read(ACCOUNT))
        assert [*tokens._durations] == [host][: host in retained]  # noqa: SLF001 - nothing else shows what is remembered
    assert world.liveperson.reached == [host]


def test_a_token_that_does_not_verify_is_a_failure_that_names_the_host(world: World) -> None:
    verifier = Verifier(TokenRefusedError(Check.SIGNATURE, "expected one by a known key, got another"))
    with pytest.raises(RefreshError) as caught:
        source(world, verifier).obtain(usable(world.vault.accounts.read(ACCOUNT)), Reason.MISSING, None)
    error = caught.value
    assert (error.host, error.check) == (world.liveperson.hosts["va"], Check.SIGNATURE)
    assert (error.stage, error.kind) == (Stage.CLAIMS, Kind.PERMANENT)
    assert str(error) == "signature: expected one by a known key, got another"


def test_keys_that_cannot_be_fetched_are_a_failure_of_their_own_and_no_doubt_of_the_host(world: World) -> None:
    tokens = source(world, Verifier(RefreshError(Stage.CLAIMS, Kind.TRANSIENT, "no JWKS")))
    world.clock.advance(HOUR)
    for _ in range(2):
        with pytest.raises(RefreshError, match="no JWKS") as caught:
            tokens.obtain(usable(world.vault.accounts.read(ACCOUNT)), Reason.MISSING, None)
        assert caught.value.kind is Kind.TRANSIENT
        world.clock.advance(2 * MINUTE)
    assert [service for service, _ in world.liveperson.requests].count("domain") == 1


# While others wait


def test_while_others_wait_an_exchange_has_twice_the_time_of_the_hosts_slowest_recent_success(world: World) -> None:
    tokens, account = source(world), usable(world.vault.accounts.read(ACCOUNT))
    world.liveperson.at_delay = world.clock.advance

    def allowed(*, others_wait: bool = True, fault: Fault | None = None) -> float:
        with world.liveperson.faults.on(fault or Fault()), suppress(RefreshError):
            tokens.obtain(account, Reason.MISSING, None, others_wait=others_wait)
        return world.liveperson.timeouts[-1].total_seconds()

    assert allowed(fault=Fault(hang=True)) == 10  # it is unknown yet how long this host takes
    assert allowed(fault=Fault(delay=3)) == 10
    assert allowed(others_wait=False) == 10
    assert allowed(fault=Fault(hang=True)) == 6
    assert [allowed() for _ in range(100)] == [6] * 99 + [2]
    assert allowed() == 2
    assert allowed(others_wait=False) == 10


def test_a_process_suspended_amid_the_exchange_takes_the_token_for_no_younger_than_it_is(world: World) -> None:
    tokens, host = source(world), world.liveperson.hosts["va"]

    def suspend(*_: object) -> None:
        world.clock.advance(40 * MINUTE)

    world.liveperson.at_token = suspend
    obtained = tokens.obtain(usable(world.vault.accounts.read(ACCOUNT)), Reason.MISSING, None)
    assert obtained.tracked.validity.remaining(world.clock()) == 20 * 60
    assert obtained.tracked.refresh_at <= world.clock() + 10 * 60
    world.store(obtained.token.raw.get_secret_value(), sentinel_host=host)
    stored = world.vault.tokens.read(ACCOUNT)
    judged = tokens.clocks.with_sentinel_clock(stored)
    assert judged == replace(stored, is_issuers_clock=True)  # asked again: what the exchange showed is not remembered


# A rotation that reached Vault before LivePerson


def rotate(world: World, credentials: Credentials, **fields: object) -> None:
    """Put another client_secret into the account, which Sentinel does not know yet."""
    world.vault.kv.put(ACCOUNTS + ACCOUNT, {**asdict(credentials), "client_secret": client_secret(), **fields})


def last_error(world: World) -> str | None:
    return world.vault.tokens.read(ACCOUNT).custom_metadata.get("last_error")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_while_sentinel_refuses_the_newest_client_secret_the_one_before_it_is_used(
    world: World, refresher: Refresher, credentials: Credentials, status: int
) -> None:
    rotate(world, credentials)
    world.liveperson.faults.set(Fault(status=status), times=1, service="sentinel")
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.previous_used) == (Result.REFRESHED, True)
    assert last_error(world) == PREVIOUS_USED


def test_once_sentinel_takes_the_newest_nothing_is_said_of_the_one_before(
    world: World, refresher: Refresher, credentials: Credentials
) -> None:
    rotate(world, credentials)
    tracked = refresher.refresh(ACCOUNT).tracked
    world.vault.kv.put(ACCOUNTS + ACCOUNT, asdict(world.liveperson.rotate(ACCOUNT, credentials.client_id)))
    world.clock.advance(35 * MINUTE)
    outcome = refresher.refresh(ACCOUNT, tracked=tracked)
    assert (outcome.result, outcome.previous_used, last_error(world)) == (Result.REFRESHED, False, None)


def test_an_edit_of_other_fields_hides_no_rotation(
    world: World, refresher: Refresher, credentials: Credentials
) -> None:
    rotate(world, credentials)
    newest = world.vault.kv.get(ACCOUNTS + ACCOUNT).data or {}
    for number in range(3):
        world.vault.kv.put(ACCOUNTS + ACCOUNT, {**newest, "note": str(number)})
    assert refresher.refresh(ACCOUNT).previous_used


@pytest.mark.parametrize(
    ("change", "later"),
    [({}, DAY + SECOND), ({"client_id": "another-app"}, HOUR), ({"account_id": "12345678"}, HOUR)],
    ids=["a day ago", "another app", "another account"],
)
def test_the_secret_before_is_that_of_the_same_app_changed_within_a_day(
    world: World, refresher: Refresher, credentials: Credentials, change: dict[str, str], later: timedelta
) -> None:
    world.liveperson.add_account("12345678")
    rotate(world, credentials, **change)
    world.clock.advance(later)
    outcome = refresher.refresh(ACCOUNT)
    assert error_of(outcome) == (Stage.SENTINEL, Kind.PERMANENT, 401, None)


def test_where_both_are_refused_the_failure_is_that_of_the_newest(
    world: World, refresher: Refresher, credentials: Credentials
) -> None:
    rotate(world, credentials)
    world.liveperson.faults.set(Fault(status=403), times=1, service="sentinel")
    world.liveperson.rotate(ACCOUNT, credentials.client_id)
    assert error_of(refresher.refresh(ACCOUNT)) == (Stage.SENTINEL, Kind.PERMANENT, 403, None)
    assert [service for service, _ in world.liveperson.requests].count("sentinel") == 2


def test_an_unusable_answer_to_the_secret_before_does_not_hide_the_refusal_of_the_newest(
    world: World, refresher: Refresher, credentials: Credentials
) -> None:
    def at_token(*_: object) -> None:
        raise TokenRefusedError(Check.TOKEN_TYPE, "expected Bearer, got mac")

    rotate(world, credentials)
    world.liveperson.at_token = at_token
    assert error_of(refresher.refresh(ACCOUNT)) == (Stage.SENTINEL, Kind.PERMANENT, 401, None)


@pytest.mark.parametrize("status", [404, 429, 503])
def test_what_is_no_refusal_of_the_credentials_is_asked_once(
    world: World, refresher: Refresher, credentials: Credentials, status: int
) -> None:
    rotate(world, credentials)
    with world.liveperson.faults.on(Fault(status=status), service="sentinel"):
        refresher.refresh(ACCOUNT)
    assert [service for service, _ in world.liveperson.requests].count("sentinel") == 1
