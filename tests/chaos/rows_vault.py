"""Vault breaks: one server, and a cluster of three."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

from sandbox.kubernetes import Kubernetes
from sandbox.world import POLICIES
from tests.chaos.engine import Row
from tests.chaos.stand import ROLE, Stand, by_jwt, direct, gated, one_node, short_logins, three_nodes

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
    """Each answer takes 0.4 s more, of the second that it may take."""
    before, stand.way.delay = len(stand.way.passed), 0.4
    yield
    stand.way.delay, stand.bites = 0.0, len(stand.way.passed) - before


@contextmanager
def cut(stand: Stand) -> Iterator[None]:
    stand.way.cuts = True
    yield
    stand.way.cuts = False


@contextmanager
def moved(stand: Stand) -> Iterator[None]:
    """The mount is gone, and comes back with what was in it."""
    stand.vault.client.sys.move_backend("secret", "elsewhere")
    yield
    stand.vault.client.sys.move_backend("elsewhere", "secret")


@contextmanager
def no_policy(stand: Stand) -> Iterator[None]:
    stand.vault.policy(ROLE, "# nothing")
    yield
    stand.vault.policy(ROLE, (POLICIES / "worker.hcl").read_text())


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
    """The old one is gone before the new one is in its file."""
    file = Path(stand.scene.settings["APPJWT_VAULT_SECRET_ID_FILE"])
    stand.vault.client.auth.approle.destroy_secret_id(ROLE, file.read_text())
    _revoke(stand)
    yield
    new = stand.vault.secret_id(ROLE)
    stand.scene.secrets.append(new)
    file.write_text(new)


@contextmanager
def jwt_rotated(stand: Stand) -> Iterator[None]:
    """The one in the file has ended before the next is there."""
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
    """When a write is on its way to it."""
    assert stand.cluster
    held = stand.way.hold(_WRITE, "before")
    assert held.caught.wait(stand.life)
    stand.cluster.step_down()
    held.let_go()
    yield


@contextmanager
def outcome_unknown(stand: Stand) -> Iterator[None]:
    """The leader is killed when it has done a write, and before it has said so."""
    assert stand.cluster
    held = stand.way.hold(_WRITE, "after")
    assert held.caught.wait(stand.life)
    with leader_killed(stand):
        held.drop()
        yield


_LEADERLESS = f"{_LOST}|{_SILENT}|a redirect \\(307\\)|status 50[03]|status 400, Waiting"

ROWS = [
    Row(_GROUP, "killed and restarted", one_node, killed, _LOST, outages=(1, 1), short=True),
    Row(_GROUP, "frozen", direct, frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "sealed and unsealed", direct, sealed, "status 503", outages=(1, 1)),
    # before a policy is taken away: after a 403 there is no other login for half a minute
    Row(_GROUP, "login revoked", gated, revoked, lasts=0, sign="vault.login"),
    Row(_GROUP, "slow", gated, slow),
    Row(_GROUP, "cut in the middle of an answer", gated, cut, _LOST, outages=(1, 1)),
    Row(_GROUP, "mount gone", gated, moved, "secret/|mounts/secret", outages=(0, 1)),
    Row(_GROUP, "policy taken away", gated, no_policy, "status 403, permission denied", outages=(0, 1)),
    Row(_GROUP, "login ends while frozen", short_logins, frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "renewals capped", short_logins, nothing, lasts=0.7, sign="vault.login"),
    Row(_GROUP, "secret_id rotated", gated, secret_id_rotated, "invalid role or secret ID", outages=(1, 1)),
    Row(_GROUP, "JWT rotated", by_jwt, jwt_rotated, "jwt login: status 400", outages=(1, 1)),
    Row(_THREE, "leader killed", three_nodes, leader_killed, _LEADERLESS, outages=(1, 4), short=True),
    Row(_THREE, "leader frozen", three_nodes, leader_frozen, _LEADERLESS, outages=(1, 4)),
    Row(_THREE, "leader steps down amid a write", three_nodes, leader_steps_down, _LEADERLESS, lasts=0, outages=(1, 2)),
    Row(_THREE, "write's outcome unknown", three_nodes, outcome_unknown, _LEADERLESS, outages=(1, 2)),
]
