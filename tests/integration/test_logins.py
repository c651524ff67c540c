"""Every way to log in to Vault, by the installed command under the worker's own policy, and how each is refused.

One OpenBao has all the methods. The commands run side by side, begun before the first test, and each test looks at one.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.kubernetes import AUDIENCE, CREDENTIAL_ID, ISSUER, Kubernetes, credential_id
from tests.integration.agent import Agent
from tests.integration.processes import Daemon, Done, Scene, Settings, eventually

WORKER = "appjwt-worker"
POLICIES = ["appjwt-worker"]
LONG_AGO = timedelta(hours=2)
SHORT = "8s"
"""Lifetime of a login that has to be replaced: that is tried after 5 s."""


@dataclass
class Stage:
    world: Scene
    cluster: Kubernetes
    folder: Path
    stranger: Kubernetes = field(default_factory=Kubernetes)
    """Another cluster, which Vault does not know."""

    def file(self, name: str, content: str) -> str:
        """Write credentials for Vault to a file; return its path."""
        self.world.secrets.append(content)
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    def lookup(self, token: str) -> dict[str, Any]:
        """Return Vault's data on a live token."""
        data: dict[str, Any] = self.world.openbao.client.auth.token.lookup(token)["data"]
        return data

    def logins(self, mount: str) -> list[dict[str, Any]]:
        """Return Vault's data on each live token that was made by a login there."""
        return [each for each in self.world.openbao.living() if each["path"] == f"auth/{mount}/login"]

    def refresh(self, account: str, changes: Settings) -> Done:
        return self.world.call("--refresh", account, changes=changes)

    def new_account_is_served(self, daemon: Daemon, account: str) -> None:
        """Proof that a daemon's login is good now: it finds the account and has its token."""
        self.world.add_account(account)
        daemon.wait_for("account.added", account=account)
        eventually(lambda: [each for each in daemon.events(account=account) if each["event"].startswith("token.")])


Make = Callable[[Stage], Settings]
"""The settings of a login, with its files."""


def kubernetes(token: Callable[[Stage], str] = lambda stage: stage.cluster.token(), **changes: str) -> Make:
    return lambda stage: _by_jwt(stage, "kubernetes", token(stage), changes)


def jwt(token: Callable[[Stage], str] = lambda stage: stage.cluster.token(), **changes: str) -> Make:
    return lambda stage: _by_jwt(stage, "jwt", token(stage), changes)


def _by_jwt(stage: Stage, method: str, token: str, changes: Settings) -> Settings:
    return {
        "APPJWT_VAULT_AUTH_METHOD": method,
        "APPJWT_VAULT_ROLE": WORKER,
        "APPJWT_VAULT_JWT_FILE": stage.file(f"{method}-{time.monotonic_ns()}", token),
        **changes,
    }


def approle(**changes: str | None) -> Make:
    return lambda _: changes


def used_up(stage: Stage) -> Settings:
    role_id, secret_id = stage.world.openbao.approle("once", POLICIES, secret_id_num_uses=1)
    stage.world.openbao.client.auth.approle.login(role_id, secret_id, use_token=False)
    return {
        "APPJWT_VAULT_ROLE_ID": role_id,
        "APPJWT_VAULT_SECRET_ID_FILE": stage.file("used-up", secret_id),
    }


def elsewhere(stage: Stage) -> Settings:
    role_id, secret_id = stage.world.openbao.approle(WORKER, POLICIES, mount="machines/approle")
    return {
        "APPJWT_VAULT_AUTH_MOUNT": "machines/approle",
        "APPJWT_VAULT_ROLE_ID": role_id,
        "APPJWT_VAULT_SECRET_ID_FILE": stage.file("elsewhere", secret_id),
    }


def without_secret_id(stage: Stage) -> Settings:
    roles = stage.world.openbao.client.auth.approle
    bound = {"bind_secret_id": False, "token_bound_cidrs": ["127.0.0.0/8"]}  # Vault wants one of the two
    roles.create_or_update_approle("open", token_policies=POLICIES, token_no_default_policy=True, **bound)
    role_id = roles.read_role_id("open")["data"]["role_id"]
    return {"APPJWT_VAULT_ROLE_ID": role_id, "APPJWT_VAULT_SECRET_ID_FILE": None}


def second_factor(stage: Stage) -> Settings:
    """Set up a role whose logins an operator put under login MFA, with all else at that mount."""
    client = stage.world.openbao.client
    role_id, secret_id = stage.world.openbao.approle(WORKER, POLICIES, mount="guarded")
    totp = {"issuer": "Vault", "period": 30, "key_size": 20, "algorithm": "SHA256", "digits": 6}
    method = client.adapter.post("/v1/identity/mfa/method/totp", json=totp)["data"]["method_id"]
    accessor = client.sys.list_auth_methods()["data"]["guarded/"]["accessor"]
    enforced = {"mfa_method_ids": [method], "auth_method_accessors": [accessor]}
    client.adapter.post("/v1/identity/mfa/login-enforcement/guarded", json=enforced)
    return {
        "APPJWT_VAULT_AUTH_MOUNT": "guarded",
        "APPJWT_VAULT_ROLE_ID": role_id,
        "APPJWT_VAULT_SECRET_ID_FILE": stage.file("guarded", secret_id),
    }


def few_uses(uses: int) -> Make:
    """Return a factory for a role whose logins may be used so often."""

    def make(stage: Stage) -> Settings:
        role_id, secret_id = stage.world.openbao.approle(f"{uses}-uses", POLICIES, token_num_uses=uses)
        return {
            "APPJWT_VAULT_ROLE_ID": role_id,
            "APPJWT_VAULT_SECRET_ID_FILE": stage.file(f"{uses}-uses", secret_id),
        }

    return make


def token(make: Callable[[Stage], str]) -> Make:
    return lambda stage: {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": make(stage)}


def token_file(make: Callable[[Stage], str]) -> Make:
    """Leave the method unset: a token that is set means `token`."""
    return lambda stage: {
        "APPJWT_VAULT_AUTH_METHOD": None,
        "APPJWT_VAULT_TOKEN_FILE": stage.file(f"token-{time.monotonic_ns()}", make(stage)),
    }


def sink(stage: Stage) -> Settings:
    with Agent(stage.folder / "agent", stage.world.openbao, *stage.world.openbao.approle("agent", POLICIES)) as agent:
        return {"APPJWT_VAULT_AUTH_METHOD": None, "APPJWT_VAULT_TOKEN_FILE": str(agent.sink)}


def a_token(stage: Stage) -> str:
    return stage.world.openbao.token(POLICIES)


def an_ended_token(stage: Stage) -> str:
    ended = a_token(stage)
    stage.world.openbao.client.auth.token.revoke(ended)
    return ended


def a_token_without_lookup_self(stage: Stage) -> str:
    stage.world.openbao.policy("no-lookup", 'path "secret/*" { capabilities = ["read", "list", "create", "update"] }')
    return stage.world.openbao.token(["no-lookup"])


GOOD: dict[str, Make] = {
    "kubernetes": kubernetes(),
    "jwt": jwt(),
    "approle": approle(),
    "approle at a mount of another name": elsewhere,
    "approle without a secret_id": without_secret_id,
    "approle with 20 uses": few_uses(20),
    "token": token(a_token),
    "token_file of a real agent": sink,
    "token_file that ends with a line break": token_file(lambda stage: a_token(stage) + "\n"),
}

SEE_ROLE = "see the service account, namespace and audience that vault.role is bound to"
KUBERNETES_403 = f"({SEE_ROLE}, vault.auth_mount, and whether Vault reaches the Kubernetes API for a TokenReview)"
JWT_400 = "(see vault.role, and the subject, audience, issuer and key that it requires)"
APPROLE_400 = "(see vault.role_id and vault.secret_id_file: the secret_id may have expired or be used up)"
TOKEN_403 = (
    "(see vault.token or vault.token_file: the token may have expired, or its policy lacks "
    'path "auth/token/lookup-self" { capabilities = ["read"] })'
)
MFA = "(take vault.auth_mount, or the role's entity, out of identity/mfa/login-enforcement)"
USES = "(set token_num_uses = 0 on its role, or make the token without -use-limit)"
EXPIRED = "invalid expiration time (exp) claim: token is expired"
UNKNOWN_KEY = "no known key successfully validated the token signature"
OTHER_AUDIENCE = "invalid audience (aud) claim: audience claim does not match any expected audience"

REFUSED: dict[str, tuple[Make, str]] = {
    "kubernetes: service account": (
        kubernetes(lambda stage: stage.cluster.token(name="default")),
        f"kubernetes login: status 403, service account name not authorized {KUBERNETES_403}",
    ),
    "kubernetes: namespace": (
        kubernetes(lambda stage: stage.cluster.token("elsewhere")),
        f"kubernetes login: status 403, namespace not authorized {KUBERNETES_403}",
    ),
    "kubernetes: audience": (
        kubernetes(lambda stage: stage.cluster.token(audience="elsewhere")),
        f"kubernetes login: status 403, {OTHER_AUDIENCE} {KUBERNETES_403}",
    ),
    "kubernetes: expired": (
        kubernetes(lambda stage: stage.cluster.token(age=LONG_AGO)),
        f"kubernetes login: status 403, {EXPIRED} {KUBERNETES_403}",
    ),
    "kubernetes: another cluster's": (
        kubernetes(lambda stage: stage.stranger.token()),
        f"kubernetes login: status 403, permission denied {KUBERNETES_403}",
    ),
    "kubernetes: role": (
        kubernetes(APPJWT_VAULT_ROLE="worker"),
        'kubernetes login: status 400, invalid role name "worker" (see vault.role)',
    ),
    "kubernetes: mount": (
        kubernetes(APPJWT_VAULT_AUTH_MOUNT="k8s"),
        f"kubernetes login: status 403, permission denied {KUBERNETES_403}",
    ),
    "kubernetes: no file": (
        kubernetes(APPJWT_VAULT_JWT_FILE="/nowhere/token"),
        "kubernetes login: vault.jwt_file /nowhere/token cannot be read: no such file or directory",
    ),
    "jwt: audience": (
        jwt(lambda stage: stage.cluster.token(audience="elsewhere")),
        f"jwt login: status 400, error validating token: {OTHER_AUDIENCE} {JWT_400}",
    ),
    "jwt: issuer": (
        jwt(lambda stage: stage.cluster.token(issuer="https://elsewhere.invalid")),
        f"jwt login: status 400, error validating token: invalid issuer (iss) claim {JWT_400}",
    ),
    "jwt: subject": (
        jwt(lambda stage: stage.cluster.token(name="default")),
        f"jwt login: status 400, error validating token: invalid subject (sub) claim {JWT_400}",
    ),
    "jwt: expired": (
        jwt(lambda stage: stage.cluster.token(age=LONG_AGO)),
        f"jwt login: status 400, error validating token: {EXPIRED} {JWT_400}",
    ),
    "jwt: key": (
        jwt(lambda stage: stage.stranger.token()),
        f"jwt login: status 400, error validating token: error verifying token signature: {UNKNOWN_KEY} {JWT_400}",
    ),
    "jwt: role": (
        jwt(APPJWT_VAULT_ROLE="worker"),
        f'jwt login: status 400, role "worker" could not be found {JWT_400}',
    ),
    "jwt: mount": (
        jwt(APPJWT_VAULT_AUTH_MOUNT="oidc"),
        "jwt login: status 403, permission denied (see vault.auth_mount)",
    ),
    "jwt: no file": (
        jwt(APPJWT_VAULT_JWT_FILE="/nowhere/token"),
        "jwt login: vault.jwt_file /nowhere/token cannot be read: no such file or directory",
    ),
    "approle: role_id": (
        approle(APPJWT_VAULT_ROLE_ID="another"),
        f"approle login: status 400, invalid role or secret ID {APPROLE_400}",
    ),
    "approle: used-up secret_id": (
        used_up,
        f"approle login: status 400, invalid role or secret ID {APPROLE_400}",
    ),
    "approle: no secret_id where the role wants one": (
        approle(APPJWT_VAULT_SECRET_ID_FILE=None),
        f"approle login: status 400, missing secret_id {APPROLE_400}",
    ),
    "approle: second factor": (
        second_factor,
        f"approle login: Vault asks for a second factor (login MFA), which no program can give {MFA}",
    ),
    "approle: 19 uses": (
        few_uses(19),
        f"approle login: it may be used 19 times, and at least 20 are needed {USES}",
    ),
    "approle: mount": (
        approle(APPJWT_VAULT_AUTH_MOUNT="machines"),
        "approle login: status 403, permission denied (see vault.auth_mount)",
    ),
    "approle: namespace": (
        approle(APPJWT_VAULT_NAMESPACE="elsewhere"),
        "approle login: status 404, namespace not found (see vault.namespace)",
    ),
    "approle: no file": (
        approle(APPJWT_VAULT_SECRET_ID_FILE="/nowhere/secret_id"),
        "approle login: vault.secret_id_file /nowhere/secret_id cannot be read: no such file or directory",
    ),
    "token: ended": (token(an_ended_token), f"token login: status 403, permission denied {TOKEN_403}"),
    "token: no lookup-self": (
        token(a_token_without_lookup_self),
        f"token login: status 403, permission denied {TOKEN_403}",
    ),
    "token_file: ended": (token_file(an_ended_token), f"token login: status 403, permission denied {TOKEN_403}"),
    "token_file: no file": (
        lambda _: {"APPJWT_VAULT_AUTH_METHOD": None, "APPJWT_VAULT_TOKEN_FILE": "/nowhere/token"},
        "token login: vault.token_file /nowhere/token cannot be read: no such file or directory",
    ),
}


# Slow tests: a daemon whose login has to be replaced.


def a_kubernetes_api_that_is_down_is_waited_for_and_the_jwt_read_anew_at_each_login(stage: Stage) -> None:
    with Kubernetes() as cluster:
        stage.world.openbao.kubernetes(WORKER, POLICIES, cluster, mount="east", token_ttl=SHORT, token_max_ttl=SHORT)
        changes = _by_jwt(stage, "kubernetes", cluster.token(), {"APPJWT_VAULT_AUTH_MOUNT": "east"})
        refused = f"kubernetes login: status 403, permission denied {KUBERNETES_403}"
        cluster.stop()
        done = stage.refresh("east1", changes)
        assert (done.status, done.err) == (3, f"appjwt-worker: Vault cannot be used: {refused}\n")

        daemon = stage.world.daemon(changes)
        down = daemon.wait_for("vault.unavailable")
        assert (down["status"], down["error"]) == (403, refused)
        assert not daemon.events("worker.ready")
        cluster.start()
        daemon.wait_for("vault.recovered")
        daemon.wait_for("worker.ready")
        stage.new_account_is_served(daemon, "east1")
        logins = eventually(lambda: stage.logins("east"))  # on a busy machine one may have ended and none followed yet
        assert {tuple(login["policies"]) for login in logins} == {tuple(POLICIES)}

        rotated = cluster.token()
        Path(str(changes["APPJWT_VAULT_JWT_FILE"])).write_text(rotated)
        eventually(lambda: any(_shows(review, rotated) for review in cluster.reviewed))
        stage.new_account_is_served(daemon, "east2")
        assert len(daemon.events("vault.unavailable")) == 1
        daemon.stop()


def _shows(review: dict[str, Any], token: str) -> bool:
    told: list[str] = review["user"]["extra"][CREDENTIAL_ID]
    return told == [credential_id(token)]


def a_secret_id_that_is_used_up_is_told_and_its_rotation_noticed(stage: Stage) -> None:
    openbao = stage.world.openbao
    role_id, secret_id = openbao.approle(
        "rotating", POLICIES, token_ttl=SHORT, token_max_ttl=SHORT, secret_id_num_uses=1
    )
    file = stage.file("rotating", secret_id)
    daemon = stage.world.daemon({"APPJWT_VAULT_ROLE_ID": role_id, "APPJWT_VAULT_SECRET_ID_FILE": file})
    daemon.wait_for("worker.ready")
    told = daemon.wait_for("vault.unavailable")
    assert told["error"] == f"approle login: status 400, invalid role or secret ID {APPROLE_400}"
    stage.file("rotating", openbao.secret_id("rotating"))
    daemon.wait_for("vault.login", count=2)
    stage.new_account_is_served(daemon, "rotating1")
    daemon.stop()


def an_agents_token_is_used_as_it_changes_and_neither_renewed_nor_revoked(stage: Stage) -> None:
    openbao = stage.world.openbao
    with Agent(stage.folder / "sink", openbao, *openbao.approle("sink", POLICIES, token_ttl="60s")) as agent:
        agent.stop()  # so that only the daemon could renew it
        first = agent.sink.read_text()
        before = stage.lookup(first).get("last_renewal")
        daemon = stage.world.daemon({"APPJWT_VAULT_AUTH_METHOD": None, "APPJWT_VAULT_TOKEN_FILE": str(agent.sink)})
        daemon.wait_for("vault.login", count=2, within=90)  # past half of its life, when one of ours is renewed
        assert stage.lookup(first).get("last_renewal") == before

        agent.sink.write_text("")  # an agent may not write it in one go, nor at once what it should be
        agent.sink.write_text("wrong")
        stage.new_account_is_served(daemon, "sink1")

        openbao.client.auth.token.revoke(first)
        second = agent.start()
        stage.new_account_is_served(daemon, "sink2")
        daemon.stop()
        assert stage.lookup(second)["policies"] == POLICIES
        assert not daemon.events("vault.renewed")


def a_given_token_is_kept_alive_and_not_revoked(stage: Stage) -> None:
    given = stage.world.openbao.token(POLICIES, ttl="60s")
    daemon = stage.world.daemon({"APPJWT_VAULT_AUTH_METHOD": None, "APPJWT_VAULT_TOKEN": given})
    daemon.wait_for("worker.ready")
    assert "last_renewal" not in stage.lookup(given)
    daemon.wait_for("vault.renewed", within=90)
    assert "last_renewal" in stage.lookup(given)
    daemon.stop()
    assert stage.lookup(given)["policies"] == POLICIES


LONG: list[Callable[[Stage], None]] = [
    a_kubernetes_api_that_is_down_is_waited_for_and_the_jwt_read_anew_at_each_login,
    a_secret_id_that_is_used_up_is_told_and_its_rotation_noticed,
    an_agents_token_is_used_as_it_changes_and_neither_renewed_nor_revoked,
    a_given_token_is_kept_alive_and_not_revoked,
]


@dataclass
class StartedTests:
    stage: Stage
    good: dict[str, Future[Done]]
    refused: dict[str, Future[Done]]
    long: dict[str, Future[None]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedTests]:
    folder = tmp_path_factory.mktemp("logins")
    with (
        Kubernetes() as cluster,
        Scene(folder / "world") as world,
        ThreadPoolExecutor(len(LONG)) as waiting,
        ThreadPoolExecutor(3) as working,
    ):
        world.openbao.kubernetes(WORKER, POLICIES, cluster)
        world.openbao.jwt(WORKER, POLICIES, cluster)
        stage = Stage(world, cluster, folder)
        for number, _ in enumerate(GOOD):
            world.add_account(f"good{number}")
        good = {
            name: working.submit(stage.refresh, f"good{number}", make(stage))
            for number, (name, make) in enumerate(GOOD.items())
        }
        wait(good.values())  # the daemons see these accounts too, and would race for them
        long = {each.__name__: waiting.submit(each, stage) for each in LONG}
        refused = {name: working.submit(stage.refresh, "good0", make(stage)) for name, (make, _) in REFUSED.items()}
        yield StartedTests(stage, good, refused, long)


@pytest.mark.parametrize("name", GOOD)
def test_a_login_is_enough_to_refresh_an_account(name: str, started: StartedTests) -> None:
    done, account = started.good[name].result(), f"good{list(GOOD).index(name)}"
    assert (done.status, done.err) == (0, "")
    assert "1 refreshed, 0 failed, 0 skipped" in done.out
    stored = started.stage.world.openbao.get_token(account)
    assert stored
    assert stored["fingerprint"] in done.out


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_login_says_what_and_where_and_what_to_do(name: str, started: StartedTests) -> None:
    done, (_, message) = started.refused[name].result(), REFUSED[name]
    assert (done.status, done.out) == (3, "")
    assert done.err == f"appjwt-worker: Vault cannot be used: {message}\n"


@pytest.mark.parametrize("name", [each.__name__ for each in LONG])
def test_a_daemon_keeps_its_login(name: str, started: StartedTests) -> None:
    started.long[name].result()


@pytest.mark.parametrize("mount", ["kubernetes", "jwt", "machines/approle"])
def test_a_login_that_we_made_is_revoked_at_the_end(mount: str, started: StartedTests) -> None:
    for done in (*started.good.values(), *started.refused.values()):
        done.result()
    assert started.stage.logins(mount) == []


def test_logins_of_25_uses_serve_200_accounts(tmp_path: Path) -> None:
    """As many reads as that used up one login after the other: no account had a token after a minute."""
    with Scene(tmp_path / "world") as world:
        names = {f"le{number:03}" for number in range(200)}
        for name in names:
            world.add_account(name)
        world.openbao.approle(WORKER, POLICIES, token_num_uses=25)

        checked = world.call("--check", "--output", "json")
        (line,) = [line for line in checked.document["checks"] if line["check"] == "login uses"]
        detail = r"warning: 25 per login \(token_num_uses\): about 16\d logins an hour"
        assert (checked.status, line["ok"]) == (0, True)
        assert re.fullmatch(f"{detail}, each of which may use up a secret_id", line["detail"])
        assert world.logins() == []

        daemon = world.daemon({"APPJWT_TOKENS_RESYNC_INTERVAL": "1s", "APPJWT_SENTINEL_MAX_PER_SECOND": "100"})
        eventually(lambda: {line["account"] for line in daemon.events("token.refreshed")} == names)
        count = len(daemon.events("vault.login"))
        daemon.wait_for("vault.login", count=count + 3)  # by the resync
        daemon.stop()
        assert not daemon.events("refresh.failed")
        assert not daemon.events("vault.unavailable")
        assert [line["cause"] for line in daemon.events("vault.login")] == ["start"] + ["ending"] * (
            len(daemon.events("vault.login")) - 1
        )
        assert world.logins() == []


def test_the_stand_in_for_kubernetes_reviews_only_for_whoever_may_ask(tmp_path: Path) -> None:
    with Kubernetes() as cluster:
        ca_file = tmp_path / "ca.pem"
        ca_file.write_text(cluster.ca_pem)

        def review(asking: str, *audiences: str) -> requests.Response:
            return requests.post(
                f"{cluster.address}/apis/authentication.k8s.io/v1/tokenreviews",
                headers={"Authorization": f"Bearer {asking}"},
                json={"spec": {"token": cluster.token(), "audiences": audiences}},
                verify=str(ca_file),
                timeout=5,
            )

        assert review("nobody").status_code == 401
        assert review(cluster.token()).status_code == 401  # it is for another audience
        assert review(cluster.token(audience=ISSUER)).status_code == 403
        assert review(cluster.reviewer_token(), AUDIENCE).json()["status"]["authenticated"] is True
        assert review(cluster.reviewer_token()).json()["status"]["authenticated"] is False
