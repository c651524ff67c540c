"""Vault breaks: one server, and a cluster of three."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sandbox.kubernetes import Kubernetes
from tests.chaos.engine import Row
from tests.chaos.stand import ROLE, Stand, by_jwt, direct, gated, one_node, three_nodes

_GROUP = "Vault"
_AT = r"127\.0\.0\.1:\d+: "
_LOST = _AT + "(connection lost|connection refused|the answer is broken)"
_SILENT = _AT + "no complete answer within 1 s"
_POLICIES = Path(__file__).parents[2] / "config" / "policies"


@contextmanager
def killed(stand: Stand) -> Iterator[None]:
    stand.vault.kill()
    yield
    stand.vault.start()


@contextmanager
def frozen(stand: Stand) -> Iterator[None]:
    stand.vault.freeze()
    yield
    stand.vault.thaw()


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
    stand.vault.policy(ROLE, (_POLICIES / "worker.hcl").read_text())


# The login


@contextmanager
def revoked(stand: Stand) -> Iterator[None]:
    _revoke(stand)
    yield


@contextmanager
def ended_while_frozen(stand: Stand) -> Iterator[None]:
    _set_role(stand, ttl="3s", longest="3s")
    with frozen(stand):
        yield
    _set_role(stand, ttl="20m", longest="1h")


@contextmanager
def capped(stand: Stand) -> Iterator[None]:
    _set_role(stand, ttl="3s", longest="5s")
    yield
    _set_role(stand, ttl="20m", longest="1h")


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
    for accessor in stand.vault.client.auth.token.list_accessors()["data"]["keys"]:
        data = stand.vault.client.auth.token.lookup_accessor(accessor)["data"]
        if data["path"] == "auth/jwt/login":
            stand.vault.client.auth.token.revoke_accessor(accessor)
    yield
    file.write_text(issuer.token())


def _revoke(stand: Stand) -> None:
    for accessor in stand.scene.logins():
        stand.vault.client.auth.token.revoke_accessor(accessor)


def _set_role(stand: Stand, ttl: str, longest: str) -> None:
    """And have the worker log in under it. Not by a 403, for after one it does not log in again for half a minute."""
    stand.vault.approle(ROLE, [ROLE], token_ttl=ttl, token_max_ttl=longest)
    stand.daemon.stop()
    stand.start().wait_for("worker.ready")


# The cluster


def on_the_leader(act: Callable[[Stand], Any]) -> Callable[[Stand], Any]:
    """It counts what went wrong at the gate, too: a follower may have an answer before an attempt fails."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        passed = stand.way.passed
        before, mark = len(passed), stand.mark()
        with act(stand):
            yield
        errors = sum(each.status >= 500 or each.status == 307 for each in passed[before:])  # noqa: PLR2004
        stand.bites = errors + len(stand.lines(mark, "refresh.failed", "vault.unavailable"))

    return fault


@contextmanager
def leader_killed(stand: Stand) -> Iterator[None]:
    assert stand.cluster
    leader = stand.cluster.leader()
    leader.kill()
    yield
    leader.start()


@contextmanager
def leader_frozen(stand: Stand) -> Iterator[None]:
    assert stand.cluster
    leader = stand.cluster.leader()
    leader.freeze()
    yield
    leader.thaw()


@contextmanager
def leader_steps_down(stand: Stand) -> Iterator[None]:
    """Again and again."""
    assert stand.cluster
    for _ in range(4):
        stand.cluster.step_down()
        time.sleep(0.2 * stand.life / 4)
    yield


_LEADERLESS = f"{_LOST}|{_SILENT}|a redirect \\(307\\)|status 50[03]|status 400, Waiting"

ROWS = [
    Row(_GROUP, "killed and restarted", one_node, killed, _LOST, outages=(1, 1), short=True),
    Row(_GROUP, "frozen", direct, frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "sealed and unsealed", direct, sealed, "status 503", outages=(1, 1)),
    Row(_GROUP, "slow", gated, slow),
    Row(_GROUP, "cut in the middle of an answer", gated, cut, _LOST, outages=(1, 1)),
    Row(_GROUP, "mount gone", gated, moved, "secret/|mounts/secret", outages=(0, 1)),
    Row(_GROUP, "policy taken away", gated, no_policy, "status 403, permission denied", outages=(0, 1)),
    Row(_GROUP, "login revoked", gated, revoked, lasts=0, sign="vault.login"),
    Row(_GROUP, "login ends while frozen", gated, ended_while_frozen, _SILENT, outages=(1, 1)),
    Row(_GROUP, "renewals capped", gated, capped, lasts=0.7, sign="vault.login"),
    Row(_GROUP, "secret_id rotated", gated, secret_id_rotated, "invalid role or secret ID", outages=(1, 1)),
    Row(_GROUP, "JWT rotated", by_jwt, jwt_rotated, "jwt login: status 400", outages=(1, 1)),
    *(
        Row("Vault of three", name, three_nodes, on_the_leader(act), _LEADERLESS, outages=(0, 2), **more)
        for name, act, more in [
            ("leader killed", leader_killed, {"short": True}),
            ("leader frozen", leader_frozen, {}),
            ("leader steps down", leader_steps_down, {}),
        ]
    ),
]
