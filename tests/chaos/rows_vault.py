"""Vault breaks: one server, and a cluster of three."""

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from hvac.exceptions import VaultError

from sandbox.kubernetes import Kubernetes
from sandbox.openbao import OpenBao
from sandbox.world import POLICIES
from tests.chaos.engine import Fault, Row
from tests.chaos.stand import (
    ROLE,
    Stand,
    by_jwt,
    crowded,
    direct,
    few_uses,
    gated,
    one_node,
    paged,
    proxied,
    short_logins,
    three_nodes,
    two_clusters,
)
from tests.integration.processes import eventually
from tests.integration.servers import http

_GROUP = "Vault"
_THREE = "Vault of three"
_AT = r"127\.0\.0\.1:\d+: "
_LOST = _AT + "(connection lost|connection refused|the answer is broken)"
_SILENT = _AT + "no complete answer within 1 s"


@contextmanager
def killed(stand: Stand) -> Iterator[None]:
    stand.vault.kill()
    yield
    stand.vault.start()


def frozen(stand: Stand) -> AbstractContextManager[None]:
    return stand.vault.frozen()


@contextmanager
def sealed(stand: Stand) -> Iterator[None]:
    key = re.search(r"Unseal Key: (\S+)", (stand.vault.folder / "bao.log").read_text())
    assert key
    stand.vault.client.sys.seal()
    yield
    stand.vault.client.sys.submit_unseal_key(key[1])


@contextmanager
def slow(stand: Stand) -> Iterator[None]:
    """Delay each answer by 0.4 s, of the second that it may take."""
    before, stand.way.delay = len(stand.way.passed), 0.4
    yield
    stand.way.delay, stand.bites = 0.0, len(stand.way.passed) - before


@contextmanager
def behind(stand: Stand) -> Iterator[None]:
    """Vault's clock is 90 s behind, four and a half lives; everybody else's is right."""
    before, stand.way.behind = len(stand.way.passed), timedelta(seconds=90)
    yield
    stand.way.behind, stand.bites = timedelta(), len(stand.way.passed) - before


@contextmanager
def cut(stand: Stand) -> Iterator[None]:
    stand.way.cuts = True
    yield
    stand.way.cuts = False


@contextmanager
def moved(stand: Stand) -> Iterator[None]:
    """Move the mount away, then back with its content."""
    stand.vault.client.sys.move_backend("secret", "elsewhere")
    yield
    stand.vault.client.sys.move_backend("elsewhere", "secret")


@contextmanager
def no_policy(stand: Stand) -> Iterator[None]:
    stand.vault.policy(ROLE, "# nothing")
    yield
    stand.vault.policy(ROLE, (POLICIES / "worker.hcl").read_text())


@contextmanager
def throttled(stand: Stand) -> Iterator[None]:
    """Limit reads of accounts to one in six seconds. Tokens are exempt: their readers use the same address."""
    quota, adapter = "/v1/sys/quotas/rate-limit/accounts", stand.vault.client.adapter
    before = len(stand.daemon.events("vault.throttled"))
    adapter.post(quota, json={"path": "secret/data/liveperson/accounts/*", "rate": 1, "interval": "6s"})
    yield
    adapter.delete(quota)
    stand.daemon.wait_for("vault.throttled", count=before + 1)  # logged some seconds after the throttling is over


@contextmanager
def paged_list(stand: Stand) -> Iterator[None]:
    """Add an account whose name is on the last page."""
    before = len(stand.way.passed)
    stand.add_account("le99999999")
    yield
    stand.bites = sum("?after=" in each.what for each in stand.way.passed[before:])


# The way there


def without_route(answer: bytes) -> Fault:
    """Answer in place of Vault, as a gateway does that lost its route."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        stand.way.no_route = answer
        yield
        stand.way.no_route = None

    return fault


@contextmanager
def forgotten(stand: Stand) -> Iterator[None]:
    """Let the network forget the connections: the next use of one is answered by a reset."""
    before = stand.way.resets
    stand.way.forget()
    yield
    stand.bites = stand.way.resets - before


@contextmanager
def forgotten_in_silence(stand: Stand) -> Iterator[None]:
    """Let the network forget the connections without a reset: data are never acknowledged."""
    clients, waited = stand.way.forget_in_silence(), set[int]()
    ends = time.monotonic() + 0.3 * stand.life
    while time.monotonic() < ends:
        waited |= clients & _unacknowledged(stand.way.port)
        time.sleep(0.05)
    stand.bites = len(waited)
    yield


def _unacknowledged(port: int) -> set[int]:
    """Return the local ports of connections to that port whose data wait to be acknowledged."""
    lines = map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
    waiting = (line for line in lines if line[2].endswith(f":{port:04X}") and not line[4].startswith("00000000:"))
    return {int(line[1].rpartition(":")[2], 16) for line in waiting}


@contextmanager
def proxy_down(stand: Stand) -> Iterator[None]:
    """Stop the proxy. It is named for http, too, but http to this machine never uses it: Vault remains reachable."""
    assert stand.proxy
    targets, stand.proxy.is_down = stand.proxy.targets, True
    stand.proxy.abort_all()
    yield
    stand.proxy.is_down = False
    assert all(re.match(r"CONNECT \w+\.proxied\.invalid:", target) for target in targets), targets


# The login


@contextmanager
def revoked(stand: Stand) -> Iterator[None]:
    _revoke(stand)
    yield


@contextmanager
def nothing(stand: Stand) -> Iterator[None]:
    del stand
    yield


@contextmanager
def secret_id_rotated(stand: Stand) -> Iterator[None]:
    """Revoke the old secret_id before the new one is in its file."""
    file = Path(stand.scene.settings["APPJWT_VAULT_SECRET_ID_FILE"])
    stand.vault.client.auth.approle.destroy_secret_id(ROLE, file.read_text())
    _revoke(stand)
    yield
    new = stand.vault.secret_id(ROLE)
    stand.scene.secrets.append(new)
    file.write_text(new)


@contextmanager
def jwt_rotated(stand: Stand) -> Iterator[None]:
    """Let the JWT in the file expire before the next one is there."""
    file, issuer = stand.scene.folder / "jwt", Kubernetes()
    file.write_text(issuer.token(age=timedelta(hours=2)))
    stand.vault.jwt(ROLE, [ROLE], issuer)
    for login in stand.vault.living():
        if login["path"] == "auth/jwt/login":
            stand.vault.client.auth.token.revoke_accessor(login["accessor"])
    yield
    file.write_text(issuer.token())


def _revoke(stand: Stand) -> None:
    for accessor in stand.scene.logins():
        stand.vault.client.auth.token.revoke_accessor(accessor)


# The cluster


_WRITE = "POST /v1/secret/data/liveperson/tokens/"


@contextmanager
def leader_killed(stand: Stand) -> Iterator[None]:
    assert stand.cluster
    leader = stand.cluster.leader()
    leader.kill()
    yield
    leader.start()


def leader_frozen(stand: Stand) -> AbstractContextManager[None]:
    assert stand.cluster
    return stand.cluster.leader().frozen()


@contextmanager
def leader_steps_down(stand: Stand) -> Iterator[None]:
    """Let the leader step down while a write is on its way to it."""
    assert stand.cluster
    held = stand.way.hold(_WRITE, "before")
    assert held.caught.wait(stand.life)
    stand.cluster.step_down()
    held.release()
    yield


@contextmanager
def outcome_unknown(stand: Stand) -> Iterator[None]:
    """Kill the leader when it has done a write, before it has answered."""
    assert stand.cluster
    held = stand.way.hold(_WRITE, "after")
    assert held.caught.wait(stand.life)
    with leader_killed(stand):
        held.drop()
        yield


def leader_sealed(*, still_offered: bool) -> Fault:
    """Seal the leader: it answers 503 on its connections.

    :param still_offered: True = the balancer sends it every third new connection, else none.
    """

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        assert stand.cluster
        leader = stand.cluster.leader()
        before, stand.way.by_health = len(stand.way.passed), not still_offered
        leader.client.sys.seal()
        yield
        # where its connections were closed just before, new ones may lead to the others for a while
        stand.bites = eventually(lambda: _sealed_answers(stand, before), stand.life)
        stand.way.by_health = False
        leader.kill()
        leader.start()

    return fault


@contextmanager
def moved_to_another_cluster(stand: Stand) -> Iterator[None]:
    """Fail over to a cluster restored from a snapshot; the old one is sealed, and its connections stay open.

    No write gets through meanwhile, so that the snapshot is no older than what readers saw.
    """
    old, new = stand.vault, stand.elsewhere
    assert new
    held = stand.way.hold(_WRITE, "before", every=True)
    new.client.sys.force_restore_raft_snapshot(old.client.sys.take_raft_snapshot().content)
    new.root_token = new.client.token = old.root_token
    eventually(lambda: all(_holds(new, name) for name in stand.watch.accounts))
    before = len(stand.way.passed)
    old.client.sys.seal()
    stand.way.lead_to([new.address])
    stand.scene.openbao, stand.vaults, stand.watch.vaults = new, [new], [new]
    assert stand.rendering
    stand.rendering.lead_to(new)
    held.release()
    yield
    stand.bites = _sealed_answers(stand, before)


def _holds(vault: OpenBao, account: str) -> bool:
    """Return True if this Vault answers and has the account's token."""
    with suppress(OSError, VaultError):
        return vault.get_token(account) is not None
    return False


def _sealed_answers(stand: Stand, since: int) -> int:
    return sum(each.status == 503 for each in stand.way.passed[since:])


_LEADERLESS = f"{_LOST}|{_SILENT}|a redirect \\(307\\)|status 50[03]|status 400, Waiting"

_NO_ROUTE = http(b"", status="404 Not Found")
_NO_ROUTE_JSON = http(b'{"message":"no Route matched with those values"}', status="404 Not Found")
_NOT_VAULTS = "status 404, and the answer is not Vault's"

ROWS = [
    Row(_GROUP, "killed and restarted", one_node, killed, _LOST, outages=(1, 1), short=True),
    Row(_GROUP, "frozen", direct, frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "sealed and unsealed", direct, sealed, "status 503", outages=(1, 1)),
    Row(_GROUP, "login revoked", gated, revoked, duration=0, sign="vault.login"),
    Row(_GROUP, "slow", gated, slow),
    Row(_GROUP, "its clock 90 s behind", gated, behind, duration=1.2),
    Row(_GROUP, "429 of a rate limit", gated, throttled, sign="vault.throttled"),
    Row(_GROUP, "cut in the middle of an answer", gated, cut, _LOST, outages=(1, 1)),
    Row(_GROUP, "mount gone", gated, moved, "secret/|mounts/secret", outages=(0, 1)),
    Row(_GROUP, "login ends while frozen", short_logins, frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "renewals capped", short_logins, nothing, duration=0.7, sign="vault.login"),
    Row(_GROUP, "logins of 25 uses", few_uses, nothing, duration=0.7, sign="vault.login"),
    Row(_GROUP, "secret_id rotated", gated, secret_id_rotated, "invalid role or secret ID", outages=(1, 1)),
    Row(_GROUP, "list cut by pagination_limit", paged, paged_list),
    Row(_GROUP, "gateway says 404, empty", gated, without_route(_NO_ROUTE), _NOT_VAULTS, outages=(1, 1)),
    Row(_GROUP, "gateway says 404, JSON of its own", gated, without_route(_NO_ROUTE_JSON), _NOT_VAULTS, outages=(1, 1)),
    Row(_GROUP, "idle connections forgotten", gated, forgotten),
    # the last of its stand that is about logins: after a 403 there is no other login for half a minute
    Row(_GROUP, "policy taken away", gated, no_policy, "status 403, permission denied", outages=(0, 1)),
    Row(_GROUP, "idle connections forgotten in silence", crowded, forgotten_in_silence),
    Row(
        _GROUP,
        "at loopback, the proxy down",
        proxied,
        proxy_down,
        r"proxied\.invalid:\d+: (connection lost|the proxy failed)",
    ),
    Row(_GROUP, "moved to another cluster, the old one sealed", two_clusters, moved_to_another_cluster),
    Row(_GROUP, "JWT rotated", by_jwt, jwt_rotated, "jwt login: status 400", outages=(1, 1)),
    Row(_THREE, "leader killed", three_nodes, leader_killed, _LEADERLESS, outages=(1, 4), short=True),
    Row(_THREE, "leader frozen", three_nodes, leader_frozen, _LEADERLESS, outages=(1, 4)),
    Row(_THREE, "leader sealed", three_nodes, leader_sealed(still_offered=False), _LEADERLESS, outages=(0, 2)),
    Row(
        _THREE,
        "leader sealed and offered all the same",
        three_nodes,
        leader_sealed(still_offered=True),
        _LEADERLESS,
        outages=(0, 2),
    ),
    Row(
        _THREE,
        "leader steps down amid a write",
        three_nodes,
        leader_steps_down,
        _LEADERLESS,
        duration=0,
        outages=(1, 2),
    ),
    Row(_THREE, "write's outcome unknown", three_nodes, outcome_unknown, _LEADERLESS, outages=(1, 2)),
]
