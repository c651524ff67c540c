"""The look-up and the token request: one contract for the fake and the real parts; and the resolver above each."""

import json
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus

import pytest
from pydantic import SecretStr

from sandbox.faults import Fault
from sandbox.liveperson import Credentials
from tests.fakes.clock import HOUR, MINUTE, SECOND
from tests.ports.handles import LivePersonPort
from worker.core import appjwt
from worker.core.account import Account
from worker.core.appjwt import AppJWT, Check, Expected, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.unchecked import TokenResponse

ID = "le81823118"
SOON = timedelta(seconds=5)


@pytest.fixture
def account(liveperson: LivePersonPort) -> Account:
    """Return an account in the second region, so that a default would show."""
    return account_of(liveperson.backstage.add_account(ID, "lo"))


def account_of(credentials: Credentials) -> Account:
    return Account(ID, ID, credentials.client_id, SecretStr(credentials.client_secret))


def ask(liveperson: LivePersonPort, account: Account) -> TokenResponse:
    return liveperson.sentinel.request_token(account, liveperson.backstage.hosts["lo"], SOON)


def check(answer: TokenResponse, account: Account) -> AppJWT:
    return appjwt.validate(answer.raw.get_secret_value(), Expected.of(account), answer.now)


# The look-up


def test_the_look_up_names_the_host_of_the_account_s_region(liveperson: LivePersonPort) -> None:
    for account_id, region in ((ID, "lo"), ("12345678", "va")):
        liveperson.backstage.add_account(account_id, region)
        assert liveperson.lookup.look_up(account_id, SOON) == liveperson.backstage.hosts[region]


@pytest.mark.parametrize("named", ["sentinel.evil.example", "no host", 7, ["va"]])
def test_the_look_up_hands_on_whatever_is_named_for_the_resolver_to_check(
    liveperson: LivePersonPort, account: Account, named: object
) -> None:
    fault = Fault(answer=json.dumps({"service": "sentinel", "account": ID, "baseURI": named}).encode())
    with liveperson.backstage.faults.on(fault, service="domain"):
        assert liveperson.lookup.look_up(ID, SOON) == named
        with pytest.raises(RefreshError) as caught:
            liveperson.hosts.sentinel_host(account, SOON)
    assert (caught.value.stage, caught.value.kind) == (Stage.DOMAIN, Kind.PERMANENT)


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (Fault(status=400), Kind.PERMANENT, 400),
        (Fault(status=404), Kind.PERMANENT, 404),
        (Fault(answer=b"{}"), Kind.PERMANENT, 200),
        (Fault(answer=b'{"service": "sentinel", "baseURI": ""}'), Kind.PERMANENT, 200),
        (Fault(answer=b"<html>a proxy's page</html>"), Kind.TRANSIENT, 200),
        (Fault(status=429), Kind.TRANSIENT, 429),
        (Fault(status=503), Kind.TRANSIENT, 503),
        (Fault(refuse=True), Kind.TRANSIENT, None),
        (Fault(hang=True), Kind.TRANSIENT, None),
        (Fault(delay=1.0), Kind.TRANSIENT, None),
    ],
)
def test_a_look_up_that_fails_says_whether_it_passes_by_itself(
    liveperson: LivePersonPort, account: Account, fault: Fault, kind: Kind, status: int | None
) -> None:
    with liveperson.backstage.faults.on(fault, service="domain"):
        for look_up in (liveperson.lookup.look_up, lambda _, timeout: liveperson.hosts.sentinel_host(account, timeout)):
            with pytest.raises(RefreshError) as caught:
                look_up(ID, 0.3 * SECOND)
            assert (caught.value.stage, caught.value.kind, caught.value.status) == (Stage.DOMAIN, kind, status)


def test_an_unknown_account_is_a_permanent_failure_of_the_look_up(liveperson: LivePersonPort, account: Account) -> None:
    liveperson.backstage.remove(ID)
    with pytest.raises(RefreshError) as caught:
        liveperson.lookup.look_up(account.account_id, SOON)
    assert (caught.value.stage, caught.value.kind, caught.value.status) == (Stage.DOMAIN, Kind.PERMANENT, 404)


# The resolver, which is the product's, over either look-up


def test_an_accounts_host_is_the_one_of_its_region(liveperson: LivePersonPort, account: Account) -> None:
    assert liveperson.hosts.sentinel_host(account, SOON) == liveperson.backstage.hosts["lo"]


def test_a_host_that_is_known_serves_on_while_the_domain_api_has_trouble(
    liveperson: LivePersonPort, account: Account
) -> None:
    host = liveperson.hosts.sentinel_host(account, SOON)
    liveperson.advance(13 * HOUR)
    with liveperson.backstage.faults.on(Fault(status=503), service="domain"):
        assert liveperson.hosts.sentinel_host(account, SOON) == host


def test_whoever_knows_no_host_asks_the_last_one_while_the_domain_api_has_trouble(
    liveperson: LivePersonPort, account: Account
) -> None:
    lo, va = liveperson.backstage.hosts["lo"], liveperson.backstage.hosts["va"]
    with liveperson.backstage.faults.on(Fault(status=503), service="domain"):
        assert liveperson.hosts.sentinel_host(account, SOON, lo) == lo
        assert liveperson.hosts.sentinel_host(account, SOON) == lo
    liveperson.advance(13 * HOUR)
    assert liveperson.hosts.sentinel_host(account, SOON, va) == lo  # the Domain API's word counts, not the last one


@pytest.mark.parametrize("last", ["sentinel.evil.example", "", "no host"])
def test_a_last_host_that_is_not_allowed_is_none(liveperson: LivePersonPort, account: Account, last: str) -> None:
    with (
        liveperson.backstage.faults.on(Fault(status=503), service="domain"),
        pytest.raises(RefreshError) as caught,
    ):
        liveperson.hosts.sentinel_host(account, SOON, last)
    assert caught.value.status == 503


def test_a_last_host_does_not_stand_in_where_the_domain_api_says_no(
    liveperson: LivePersonPort, account: Account
) -> None:
    with (
        liveperson.backstage.faults.on(Fault(status=404), service="domain"),
        pytest.raises(RefreshError) as caught,
    ):
        liveperson.hosts.sentinel_host(account, SOON, liveperson.backstage.hosts["lo"])
    assert caught.value.kind is Kind.PERMANENT


def test_a_move_is_noticed_when_the_cache_ends_and_not_before(liveperson: LivePersonPort, account: Account) -> None:
    hosts = liveperson.backstage.hosts
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["lo"]
    liveperson.backstage.add_account(ID, "va")
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["lo"]
    liveperson.advance(13 * HOUR)
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["va"]


def test_a_look_up_that_is_invalidated_is_made_again_unless_it_is_a_minute_old_at_most(
    liveperson: LivePersonPort, account: Account
) -> None:
    hosts = liveperson.backstage.hosts
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["lo"]
    liveperson.backstage.add_account(ID, "va")
    liveperson.hosts.invalidate(account)
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["lo"]
    liveperson.advance(MINUTE)
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["lo"]
    liveperson.hosts.invalidate(account)
    assert liveperson.hosts.sentinel_host(account, SOON) == hosts["va"]


def test_a_host_outside_the_allow_list_is_refused_whoever_names_it(
    liveperson: LivePersonPort, account: Account
) -> None:
    evil = Fault(answer=b'{"service": "sentinel", "baseURI": "sentinel.evil.example"}')
    with liveperson.backstage.faults.on(evil, service="domain"), pytest.raises(RefreshError) as by_api:
        liveperson.hosts.sentinel_host(account, SOON)
    with pytest.raises(RefreshError) as by_account:
        liveperson.hosts.sentinel_host(replace(account, sentinel_domain="sentinel.evil.example"), SOON)
    for caught in (by_api, by_account):
        assert (caught.value.stage, caught.value.kind) == (Stage.DOMAIN, Kind.PERMANENT)


def test_an_accounts_own_sentinel_domain_skips_the_look_up(liveperson: LivePersonPort, account: Account) -> None:
    va = liveperson.backstage.hosts["va"]
    with liveperson.backstage.faults.on(Fault(status=503), service="domain"):
        assert liveperson.hosts.sentinel_host(replace(account, sentinel_domain=va), SOON) == va


# The token request


def test_a_token_is_the_accounts_own_and_passes_every_check(liveperson: LivePersonPort, account: Account) -> None:
    before = liveperson.backstage.mints(ID)
    answer = ask(liveperson, account)
    token = check(answer, account)
    assert (token.aud, token.azp, token.lifetime) == ((ID,), account.client_id, HOUR)
    assert answer.token_type == "Bearer"
    assert answer.now is not None
    assert abs(answer.now - liveperson.now()) < 5 * SECOND
    assert liveperson.backstage.mints(ID) == before + 1


def test_the_life_of_tokens_can_be_another(liveperson: LivePersonPort, account: Account) -> None:
    liveperson.backstage.token_life = 5 * MINUTE
    assert check(ask(liveperson, account), account).lifetime == 5 * MINUTE


def test_a_wrong_secret_is_refused_for_good_until_it_is_right(liveperson: LivePersonPort, account: Account) -> None:
    rotated = liveperson.backstage.rotate(ID, account.client_id)
    unknown = replace(account, client_id="unknown")
    for wrong in (account, unknown):
        with pytest.raises(RefreshError) as caught:
            ask(liveperson, wrong)
        assert (caught.value.stage, caught.value.kind) == (Stage.SENTINEL, Kind.PERMANENT)
        assert caught.value.status == HTTPStatus.UNAUTHORIZED
    assert check(ask(liveperson, account_of(rotated)), account)


def test_an_account_is_unknown_at_another_regions_sentinel(liveperson: LivePersonPort, account: Account) -> None:
    with pytest.raises(RefreshError) as caught:
        liveperson.sentinel.request_token(account, liveperson.backstage.hosts["va"], SOON)
    assert (caught.value.stage, caught.value.kind, caught.value.status) == (Stage.SENTINEL, Kind.PERMANENT, 404)


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (Fault(status=400), Kind.PERMANENT, 400),
        (Fault(status=403), Kind.PERMANENT, 403),
        (Fault(status=408), Kind.TRANSIENT, 408),
        (Fault(status=429), Kind.TRANSIENT, 429),
        (Fault(status=500), Kind.TRANSIENT, 500),
        (Fault(status=503), Kind.TRANSIENT, 503),
        (Fault(answer=b"{}"), Kind.TRANSIENT, 200),
        (Fault(refuse=True), Kind.TRANSIENT, None),
        (Fault(cut=True), Kind.TRANSIENT, None),
    ],
)
def test_the_status_alone_tells_what_kind_of_failure_it_is(
    liveperson: LivePersonPort, account: Account, fault: Fault, kind: Kind, status: int | None
) -> None:
    with liveperson.backstage.faults.on(fault, account=ID), pytest.raises(RefreshError) as caught:
        ask(liveperson, account)
    assert (caught.value.stage, caught.value.kind, caught.value.status) == (Stage.SENTINEL, kind, status)
    assert check(ask(liveperson, account), account)


def test_a_hang_ends_in_time_as_a_transient_failure(liveperson: LivePersonPort, account: Account) -> None:
    host = liveperson.backstage.hosts["lo"]
    with liveperson.backstage.faults.on(Fault(hang=True)), pytest.raises(RefreshError) as caught:
        liveperson.sentinel.request_token(account, host, 0.3 * SECOND)
    assert (caught.value.stage, caught.value.kind, caught.value.status) == (Stage.SENTINEL, Kind.TRANSIENT, None)
    assert caught.value.timed_out


@pytest.mark.parametrize("fault", [Fault(refuse=True), Fault(status=503), Fault(cut=True)])
def test_any_other_failure_is_no_timeout(liveperson: LivePersonPort, account: Account, fault: Fault) -> None:
    with liveperson.backstage.faults.on(fault), pytest.raises(RefreshError) as caught:
        ask(liveperson, account)
    assert not caught.value.timed_out


def test_retry_after_is_handed_on(liveperson: LivePersonPort, account: Account) -> None:
    fault = Fault(status=429, headers={"Retry-After": "7"})
    with liveperson.backstage.faults.on(fault), pytest.raises(RefreshError) as caught:
        ask(liveperson, account)
    assert caught.value.retry_after == 7 * SECOND


def test_the_same_token_may_come_again_as_long_as_it_lives(liveperson: LivePersonPort, account: Account) -> None:
    first = ask(liveperson, account)
    with liveperson.backstage.faults.on(Fault(same_token=True)):
        again = ask(liveperson, account)
    assert again.raw == first.raw


def test_wrong_claims_are_handed_on_for_the_core_to_refuse(liveperson: LivePersonPort, account: Account) -> None:
    fault = Fault(claims={"aud": "other"})
    with liveperson.backstage.faults.on(fault):
        answer = ask(liveperson, account)
    with pytest.raises(TokenRefusedError) as caught:
        check(answer, account)
    assert caught.value.check == Check.AUD


def test_a_skewed_sentinel_is_right_by_its_own_clock(liveperson: LivePersonPort, account: Account) -> None:
    with liveperson.backstage.faults.on(Fault(skew=timedelta(days=1))):
        answer = ask(liveperson, account)
    assert answer.now is not None
    assert abs(answer.now - liveperson.now() - timedelta(days=1)) < 5 * SECOND
    assert check(answer, account).iat <= answer.now


def test_an_answer_without_a_date_tells_no_time(liveperson: LivePersonPort, account: Account) -> None:
    with liveperson.backstage.faults.on(Fault(no_date=True)):
        answer = ask(liveperson, account)
    assert answer.now is None
    assert check(answer, account)
