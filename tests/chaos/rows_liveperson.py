"""LivePerson breaks."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox import faults
from sandbox.faults import Service
from tests.chaos.engine import Fault, Row
from tests.chaos.stand import Stand, crowded, direct, named, neighbours, restarted_directly
from tests.integration.processes import eventually

_GROUP = "LivePerson"
_LONGEST_PAUSE = 150.0
"""Seconds: two minutes of pause where no token lives, and an attempt."""
_HOST = r"localhost:\d+"


def answering(fault: faults.Fault, service: Service = "sentinel") -> Fault:
    return lambda stand: stand.scene.liveperson.faults.on(fault, service=service)


@contextmanager
def half_hang(stand: Stand) -> Iterator[None]:
    """Let half of the accounts hang, unread until they have a live token again: only the others must not suffer."""
    sick = frozenset(list(stand.watch.accounts)[::2])
    faults_in_force = stand.scene.liveperson.faults
    stand.watch.ignored = sick
    for name in sick:
        faults_in_force.set(faults.Fault(hang=True), account=name)
    yield
    for name in sick:
        faults_in_force.clear(account=name)
    eventually(lambda: all(map(stand.has_live_token, sick)), _LONGEST_PAUSE)
    stand.watch.ignored = frozenset()


@contextmanager
def domain_api_down(stand: Stand) -> Iterator[None]:
    seen = stand.scene.liveperson.seen
    before = len(seen)

    def refused() -> int:
        return sum(each.service == "domain" and each.status != 200 for each in seen[before:])

    with stand.scene.liveperson.faults.on(faults.Fault(status=503), service="domain"):
        yield
        eventually(refused, stand.life)  # a host, once found, is cached for a while
    stand.bites = refused()


@contextmanager
def domain_api_down_and_a_restart(stand: Stand) -> Iterator[None]:
    seen = stand.scene.liveperson.seen
    with domain_api_down(stand):
        stand.kill()
        stand.start()
        before = len(seen)
        eventually(lambda: any(each.service == "domain" for each in seen[before:]), stand.life)
        yield


@contextmanager
def name_moved(stand: Stand) -> Iterator[None]:
    """Move the name to other servers; the old ones answer 503 from now on, and do not close their connections."""
    liveperson = stand.scene.liveperson
    hosts, old, new = liveperson.hosts, f"localhost:{stand.ports[-1]}", liveperson.hosts["lo"]
    before, hosts["lo"] = len(liveperson.seen), hosts["va"]
    for name, app in stand.watch.accounts.items():
        liveperson.add_account(name, "lo", app.client_id, app.client_secret)
    liveperson.faults.set(faults.Fault(status=503), host=old)
    stand.ports.append(int(new.rpartition(":")[2]))
    yield
    stand.bites = sum((each.region, each.status) == ("va", 503) for each in liveperson.seen[before:])


@contextmanager
def secret_in_vault_first(stand: Stand) -> Iterator[None]:
    """Store a new client_secret that LivePerson does not know yet."""
    new = {name: secrets.token_hex(13) for name in stand.watch.accounts}
    _store(stand, new)
    yield
    for name, secret in new.items():
        stand.scene.liveperson.add_account(name, client_id=stand.watch.accounts[name].client_id, client_secret=secret)


@contextmanager
def secret_at_liveperson_first(stand: Stand) -> Iterator[None]:
    liveperson, accounts = stand.scene.liveperson, stand.watch.accounts
    new = {name: liveperson.rotate(name, app.client_id).client_secret for name, app in accounts.items()}
    yield
    _store(stand, new)


@contextmanager
def wrong_secret(stand: Stand) -> Iterator[None]:
    """Twice, so that the one before the newest is wrong, too."""
    for _ in range(2):
        _store(stand, {name: secrets.token_hex(13) for name in stand.watch.accounts})
    yield
    liveperson, accounts = stand.scene.liveperson, stand.watch.accounts
    _store(stand, {name: liveperson.rotate(name, app.client_id).client_secret for name, app in accounts.items()})


def _store(stand: Stand, client_secrets: dict[str, str]) -> None:
    for name, secret in client_secrets.items():
        stand.scene.secrets.append(secret)
        client_id = stand.watch.accounts[name].client_id
        stand.vault.put_account(name, {"client_id": client_id, "client_secret": secret})


_REFUSED = f"{_HOST} answers 401"
_TOO_MANY = faults.Fault(status=429, headers={"Retry-After": "60"})
_CODE = faults.Fault(status=500, body=b'{"internalErrorCode": "9007"}')
_ELSEWHERE = faults.Fault(answer=b'{"service": "sentinel", "baseURI": "sentinel.invalid"}')

ROWS = [
    Row(_GROUP, "down", crowded, answering(faults.Fault(refuse=True)), f"{_HOST}: connection lost", short=True),
    Row(_GROUP, "hanging", direct, answering(faults.Fault(hang=True)), f"{_HOST}: no complete answer within"),
    Row(
        _GROUP,
        "half of the accounts hang",
        neighbours,
        half_hang,
        f"{_HOST}: no complete answer within",
        duration=1.2,
        at_once=True,
    ),
    Row(
        _GROUP,
        "dripping",
        direct,
        answering(faults.Fault(drip=0.05, drip_from="headers")),
        f"{_HOST}: no complete answer within",
    ),
    Row(_GROUP, "429 with Retry-After", direct, answering(_TOO_MANY), f"{_HOST} answers 429"),
    Row(_GROUP, "403 for all", direct, answering(faults.Fault(status=403)), f"{_HOST} answers 403"),
    Row(_GROUP, "500 with a credential's code", direct, answering(_CODE), f"{_HOST} answers 500: .*9007"),
    Row(_GROUP, "others' tokens", direct, answering(faults.Fault(claims={"azp": "other"})), "azp: expected"),
    Row(
        _GROUP,
        "wrong certificates",
        direct,
        lambda stand: stand.scene.unknown_ca(),
        f"{_HOST}: its certificate is refused",
    ),
    Row(
        _GROUP,
        "another host",
        restarted_directly,
        answering(_ELSEWHERE, "domain"),
        "sentinel.invalid, which .* does not allow",
    ),
    Row(_GROUP, "Domain API down", direct, domain_api_down),
    Row(
        _GROUP,
        "Domain API down, daemon restarted",
        restarted_directly,
        domain_api_down_and_a_restart,
        duration=0.1,
        goes_on=False,
        short=True,
    ),
    Row(_GROUP, "its name moved, the old servers unwell", named, name_moved, f"{_HOST} answers 503"),
    # a request between the two secrets, when LivePerson takes the new one, is refused with both
    Row(_GROUP, "new secret early", direct, secret_in_vault_first, _REFUSED, sign="credentials.previous_used"),
    Row(_GROUP, "new secret late", direct, secret_at_liveperson_first, _REFUSED),
    Row(_GROUP, "wrong secret", direct, wrong_secret, _REFUSED),
]
