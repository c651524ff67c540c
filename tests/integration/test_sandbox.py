"""The stand-ins behave as the real services do, and each fault really bites: seen with plain clients."""

import functools
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import hvac
import jwt
import pytest
import requests

import sandbox
from sandbox.faults import DROP, Fault
from sandbox.liveperson import Credentials, LivePerson
from sandbox.openbao import OpenBao

ACCOUNT = "le81823118"
TOKEN_URL = "https://{}/sentinel/api/account/{}/app/token?v=1.0&grant_type=client_credentials"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePerson]:
    with LivePerson(tmp_path_factory.mktemp("liveperson")) as liveperson:
        yield liveperson


@pytest.fixture
def liveperson(running: LivePerson) -> Iterator[LivePerson]:
    yield running
    running.faults.reset()
    running.seen.clear()
    running.token_life = timedelta(hours=1)


@pytest.fixture
def credentials(liveperson: LivePerson) -> Credentials:
    return liveperson.add_account(ACCOUNT, "va")


@pytest.fixture
def ask(liveperson: LivePerson, credentials: Credentials) -> Callable[..., requests.Response]:
    """Return a function that requests a token as the worker does; keywords change the request."""

    def post(region: str = "va", account: str = ACCOUNT, **changes: Any) -> requests.Response:
        url = TOKEN_URL.format(liveperson.hosts[region], account)
        options: dict[str, Any] = {"data": asdict(credentials), "timeout": 5, "allow_redirects": False}
        return requests.post(url, verify=str(liveperson.ca_file), **(options | changes))

    return post


def verified(liveperson: LivePerson, token: str, audience: str = ACCOUNT) -> dict[str, Any]:
    return jwt.decode(token, liveperson.public_key_pem, algorithms=["RS256"], audience=audience)


def test_a_token_verifies_and_has_the_documented_form(
    liveperson: LivePerson, credentials: Credentials, ask: Callable[..., requests.Response]
) -> None:
    answer = ask()
    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type"}
    assert answer.json()["token_type"] == "Bearer"

    token = answer.json()["access_token"]
    claims = verified(liveperson, token)
    assert jwt.get_unverified_header(token) == {"kid": "appjwt-13-05-17", "typ": "JWT", "alg": "RS256"}
    assert claims["exp"] - claims["iat"] == 3600
    assert {name: claims[name] for name in claims.keys() - {"iat", "exp"}} == {
        "aud": ACCOUNT,
        "azp": credentials.client_id,
        "scope": "msg.consumer",
        "iss": "Sentinel",
    }
    assert abs(parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()) < 30


def test_an_account_is_served_in_its_own_region_only(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    other = liveperson.add_account("12345678", "lo")
    assert ask("lo", "12345678", data=asdict(other)).status_code == 200
    assert ask("va", "12345678", data=asdict(other)).status_code == 404
    assert ask("lo").status_code == 404
    assert ask("va", "unknown").status_code == 404
    liveperson.add_account(ACCOUNT, "lo")  # moves
    assert (ask("va").status_code, ask("lo").status_code) == (404, 200)
    with pytest.raises(ValueError, match="no region 'xx'"):
        liveperson.add_account("1", "xx")


def test_the_domain_api_tells_where_an_account_lives(liveperson: LivePerson, credentials: Credentials) -> None:
    assert credentials
    liveperson.add_account("12345678", "lo")

    def get(path: str, version: str = "?version=1.0") -> requests.Response:
        url = f"{liveperson.domain_api}/api/account/{path}/baseURI.json{version}"
        return requests.get(url, verify=str(liveperson.ca_file), timeout=5)

    one = {"service": "sentinel", "account": ACCOUNT, "baseURI": liveperson.hosts["va"]}
    assert get(f"{ACCOUNT}/service/sentinel").json() == one
    assert get("12345678/service/sentinel").json()["baseURI"] == liveperson.hosts["lo"]
    others = [one | {"service": service} for service in ("idp", "asyncMessagingEnt")]
    assert get(f"{ACCOUNT}/service").json() == {"baseURIs": [one, *others]}
    assert get(f"{ACCOUNT}/service/Sentinel").status_code == 404
    assert get("unknown/service/sentinel").status_code == 404
    assert get(f"{ACCOUNT}/service/sentinel", version="").status_code == 400


def test_sentinel_refuses_what_the_real_one_refuses(
    liveperson: LivePerson, credentials: Credentials, ask: Callable[..., requests.Response]
) -> None:
    wrong = ask(data={"client_id": credentials.client_id, "client_secret": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    assert ask(data={"client_id": "unknown", "client_secret": credentials.client_secret}).status_code == 401
    assert ask(data={"client_id": credentials.client_id}).status_code == 400
    assert ask(data=None, json=asdict(credentials)).status_code == 415
    assert ask(params={"client_secret": credentials.client_secret}).status_code == 400
    bare = TOKEN_URL.format(liveperson.hosts["va"], ACCOUNT).partition("?")[0]
    for url in (bare, f"{bare}?v=2.0&grant_type=client_credentials"):
        assert requests.post(url, asdict(credentials), verify=str(liveperson.ca_file), timeout=5).status_code == 400
    assert requests.get(url, verify=str(liveperson.ca_file), timeout=5).status_code == 405
    assert liveperson.mints() == 0


def test_an_old_secret_and_a_removed_app_are_refused_and_other_apps_are_not(
    liveperson: LivePerson, credentials: Credentials, ask: Callable[..., requests.Response]
) -> None:
    second = liveperson.add_account(ACCOUNT)
    new = liveperson.rotate(ACCOUNT, credentials.client_id)
    assert ask().status_code == 401
    assert ask(data=asdict(new)).status_code == 200
    liveperson.remove(ACCOUNT, new.client_id)
    assert ask(data=asdict(new)).status_code == 401
    assert ask(data=asdict(second)).status_code == 200
    liveperson.remove(ACCOUNT)
    assert ask(data=asdict(second)).status_code == 404


def test_secrets_are_not_shown(liveperson: LivePerson, credentials: Credentials) -> None:
    assert credentials.client_secret.isalnum()
    assert len(credentials.client_secret) == 26
    assert credentials.client_secret not in f"{credentials!r} {liveperson!r} {liveperson._accounts!r}"  # noqa: SLF001


def test_every_request_is_remembered(liveperson: LivePerson, ask: Callable[..., requests.Response]) -> None:
    ask()
    ask("lo")
    assert [(seen.service, seen.account_id, seen.region, seen.status) for seen in liveperson.seen] == [
        ("sentinel", ACCOUNT, "va", 200),
        ("sentinel", ACCOUNT, "lo", 404),
    ]
    first, second = liveperson.seen
    assert first.fingerprint is not None
    assert second.fingerprint is None
    assert (liveperson.mints(), liveperson.mints(ACCOUNT), liveperson.mints("other")) == (1, 1, 0)


def test_a_consumer_jws_is_given_for_a_sound_token_only(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    def consumer(token: str, body: object = None, query: str = "?v=1.0") -> requests.Response:
        url = f"https://{liveperson.hosts['va']}/api/account/{ACCOUNT}/consumer{query}"
        document = {"ext_consumer_id": "c1"} if body is None else body
        return requests.post(
            url, json=document, headers={"Authorization": token}, verify=str(liveperson.ca_file), timeout=5
        )

    token = ask().json()["access_token"]
    answer = consumer(token)
    assert answer.status_code == 201
    claims = verified(liveperson, answer.json()["token"])
    assert claims["sub"] == "c1"
    assert "exp" not in claims

    assert consumer(token, []).status_code == 400
    assert consumer(token, query="").status_code == 400
    bad = [f"Bearer {token}", token[:-8] + "AAAAAAAA", ""]
    for fault in (
        Fault(skew=-timedelta(hours=2)),
        Fault(claims={"aud": "other"}),
        Fault(header={"alg": "none"}),
        Fault(header={"alg": "HS256"}),
    ):
        with liveperson.faults.on(fault):
            bad.append(ask().json()["access_token"])
    for each in bad:
        refused = consumer(each)
        assert (refused.status_code, refused.json()["errorCode"]) == (401, 40102 if each else 40105)


def test_the_send_api_names_the_token_that_is_wrong(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    base = f"https://{liveperson.hosts['va']}/api/account/{ACCOUNT}"
    post = functools.partial(requests.post, verify=str(liveperson.ca_file), timeout=5)
    token = ask().json()["access_token"]
    jws = post(f"{base}/consumer?v=1.0", json={"ext_consumer_id": "c1"}, headers={"Authorization": token}).json()[
        "token"
    ]

    def send(**headers: str) -> requests.Response:
        named = {"Authorization": headers.get("token"), "X-LP-ON-BEHALF": headers.get("jws")}
        command = {"kind": "req", "id": "7", "type": "cm.ConsumerRequestConversation", "body": {}}
        return post(f"{base}/messaging/consumer/conversation?v=3", json=[command], headers=named)

    answer = send(token=token, jws=jws)
    assert (answer.status_code, answer.json()[0]["reqId"]) == (200, "7")
    for headers, code in (
        ({"jws": jws}, 40105),
        ({"token": jws, "jws": jws}, 40102),
        ({"token": token}, 40104),
        ({"token": token, "jws": token}, 40103),
    ):
        refused = send(**headers)
        assert (refused.status_code, refused.json()["errorCode"]) == (401, code)


# Faults


def test_the_most_specific_fault_wins_and_runs_out(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    other = asdict(liveperson.add_account("12345678", "va"))
    liveperson.faults.set(Fault(status=500))
    liveperson.faults.set(Fault(status=502), host=liveperson.hosts["va"])
    liveperson.faults.set(Fault(status=503), account=ACCOUNT, times=2)
    assert [ask().status_code for _ in range(3)] == [503, 503, 502]
    assert ask("lo").status_code == 500
    assert ask(account="12345678", data=other).status_code == 502
    liveperson.faults.clear(host=liveperson.hosts["va"])
    assert ask().status_code == 500
    liveperson.faults.clear()
    assert ask().status_code == 200


def test_a_fault_can_answer_in_the_services_place(
    liveperson: LivePerson, credentials: Credentials, ask: Callable[..., requests.Response]
) -> None:
    faults = liveperson.faults
    with faults.on(Fault(status=429, body=b"slow down", headers={"retry-after": "7", "content-type": "text/html"})):
        answer = ask()
        assert (answer.status_code, answer.content, answer.headers["Retry-After"]) == (429, b"slow down", "7")
        assert answer.headers["Content-Type"] == "text/html"
    with faults.on(Fault(answer=b"[]")):
        assert ask().json() == []
    with faults.on(Fault(redirect_to="https://localhost:1/")):
        assert (ask().status_code, ask().headers["Location"]) == (307, "https://localhost:1/")
    with faults.on(Fault(redirect_to="/", status=302)):
        assert ask().status_code == 302
    with faults.on(Fault(echo_request=True, status=500)):
        assert credentials.client_secret in ask().text
    with faults.on(Fault(body_size=3_000_000)):
        assert len(ask().content) == 3_000_000
    with faults.on(Fault(gzip_bomb=50_000_000)):
        packed = ask(stream=True)
        wire = packed.raw.read(decode_content=False)
        packed.close()
        assert len(wire) < 100_000
        assert len(gzip.decompress(wire)) == 50_000_000
        assert len(ask().content) == 50_000_000
    with faults.on(Fault(answer=b'{"baseURI": "evil.example"}'), service="domain"):
        url = f"{liveperson.domain_api}/api/account/{ACCOUNT}/service/sentinel/baseURI.json?version=1.0"
        assert requests.get(url, verify=str(liveperson.ca_file), timeout=5).json()["baseURI"] == "evil.example"


def test_a_fault_can_spoil_the_token(liveperson: LivePerson, ask: Callable[..., requests.Response]) -> None:
    faults = liveperson.faults

    def token() -> str:
        return str(ask().json()["access_token"])

    with faults.on(Fault(claims={"scope": DROP, "aud": ["x", ACCOUNT]}, header={"kid": DROP, "x": 1})):
        odd = token()
        assert "scope" not in verified(liveperson, odd)
        assert verified(liveperson, odd)["aud"] == ["x", ACCOUNT]
        assert jwt.get_unverified_header(odd) == {"typ": "JWT", "alg": "RS256", "x": 1}
    for alg in ("none", "HS256"):
        with faults.on(Fault(header={"alg": alg})):
            forged = token()
            assert jwt.get_unverified_header(forged)["alg"] == alg
            assert forged.endswith(".") == (alg == "none")
            with pytest.raises(jwt.InvalidAlgorithmError):
                verified(liveperson, forged)
    liveperson.token_life = timedelta(seconds=1000)
    first = token()
    liveperson.token_life = timedelta(seconds=2000)
    assert token() != first
    with faults.on(Fault(same_token=True)):
        assert token() == token()
    with faults.on(Fault(same_token=True, skew=timedelta(hours=1))):
        assert token() != first


def test_a_delay_delays_only_whom_it_is_for(liveperson: LivePerson, ask: Callable[..., requests.Response]) -> None:
    other = asdict(liveperson.add_account("12345678", "va"))
    with liveperson.faults.on(Fault(delay=2), account=ACCOUNT):
        slow = threading.Thread(target=ask)
        began = time.monotonic()
        slow.start()
        assert ask(account="12345678", data=other).status_code == 200
        assert slow.is_alive()
        slow.join()
        assert time.monotonic() - began >= 2


def test_a_hanging_service_never_answers(liveperson: LivePerson, ask: Callable[..., requests.Response]) -> None:
    with liveperson.faults.on(Fault(hang=True)), pytest.raises(requests.ReadTimeout):
        ask(timeout=(5, 1))
    assert [seen.status for seen in liveperson.seen] == [0]


def test_a_dripping_service_beats_a_timeout_per_read(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    for fault in (Fault(drip=0.15, status=503, body=b"0123456789"), Fault(drip=0.01, drip_from="headers", status=503)):
        with liveperson.faults.on(fault):
            began = time.monotonic()
            assert ask(timeout=(5, 1)).status_code == 503
            assert time.monotonic() - began > 1


def test_a_cut_answer_ends_in_the_middle(liveperson: LivePerson, ask: Callable[..., requests.Response]) -> None:
    with liveperson.faults.on(Fault(cut=True)):
        answer = ask(stream=True)
        assert answer.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
            assert answer.content
        answer.close()
    assert [(seen.status, seen.fingerprint is None) for seen in liveperson.seen] == [(0, False)]
    assert liveperson.mints() == 0


def test_a_refusing_service_hangs_up_without_a_byte(
    liveperson: LivePerson, ask: Callable[..., requests.Response]
) -> None:
    with liveperson.faults.on(Fault(refuse=True)), pytest.raises(requests.ConnectionError):
        ask()
    assert ask().status_code == 200


def test_it_stops_at_once_with_clients_hanging_and_idle(tmp_path: Path) -> None:
    threads = threading.active_count()
    failures: list[Exception] = []
    with requests.Session() as session, ExitStack() as stack:
        liveperson = stack.enter_context(LivePerson(tmp_path, regions=("sy",)))
        account = asdict(liveperson.add_account(ACCOUNT))
        url = TOKEN_URL.format(liveperson.hosts["sy"], ACCOUNT)
        ca = str(liveperson.ca_file)
        assert session.post(url, account, verify=ca, timeout=5).status_code == 200  # left open, idle

        def hang() -> None:
            try:
                requests.post(url, account, verify=ca, timeout=30)
            except requests.ConnectionError as error:
                failures.append(error)

        liveperson.faults.set(Fault(hang=True))
        client = threading.Thread(target=hang)
        client.start()
        while len(liveperson.seen) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        stack.close()
        client.join()
        assert time.monotonic() - began < 10
    assert len(failures) == 1
    assert threading.active_count() == threads


def test_only_its_own_ca_trusts_it(liveperson: LivePerson) -> None:
    host, port = liveperson.hosts["va"].split(":")
    for name, context in (
        (host, ssl.create_default_context(cafile=liveperson.ca_file)),
        ("127.0.0.1", ssl.create_default_context(cafile=liveperson.ca_file)),
    ):
        with socket.create_connection((name, int(port))) as plain, context.wrap_socket(plain, server_hostname=name):
            pass
    with socket.create_connection((host, int(port))) as plain, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(plain, server_hostname=host)


# OpenBao


@pytest.fixture(scope="module")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAO_LOG_LEVEL", "nonsense")  # the caller's variables must not reach it
        patch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
        with OpenBao(tmp_path_factory.mktemp("openbao"), audit=True) as openbao:
            yield openbao


@pytest.fixture
def session(openbao: OpenBao) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(openbao.ca_file)
        yield session


def test_openbao_keeps_accounts_and_enforces_a_policy(openbao: OpenBao, session: requests.Session) -> None:
    openbao.policy("reader", 'path "secret/data/liveperson/accounts/*" { capabilities = ["read"] }')
    openbao.put_account(ACCOUNT, {"client_id": "c", "client_secret": "s"})
    role_id, secret_id = openbao.approle("worker", ["reader"], secret_id_num_uses=1)

    client = hvac.Client(url=openbao.address, token="", session=session)
    client.auth.approle.login(role_id, secret_id)
    kv = client.secrets.kv.v2
    path = f"liveperson/accounts/{ACCOUNT}"
    answer = kv.read_secret_version(path, raise_on_deleted_version=True)
    assert answer["data"]["data"] == {"client_id": "c", "client_secret": "s"}
    with pytest.raises(hvac.exceptions.Forbidden):
        kv.create_or_update_secret(path, {})
    with pytest.raises(hvac.exceptions.InvalidRequest):
        client.auth.approle.login(role_id, secret_id)
    client.token = openbao.token(["reader"], ttl="5m")
    assert kv.read_secret_version(path, raise_on_deleted_version=True)


def test_a_stored_token_can_be_looked_at_by_root(openbao: OpenBao) -> None:
    assert openbao.get_token(ACCOUNT) is None
    openbao.client.secrets.kv.v2.create_or_update_secret(f"liveperson/tokens/{ACCOUNT}", {"access_token": "x"})
    assert openbao.get_token(ACCOUNT) == {"access_token": "x"}


def test_the_audit_file_tells_paths_and_hides_values(openbao: OpenBao) -> None:
    openbao.put_account("audited", {"client_secret": "not-in-the-audit-file"})
    text = openbao.audit_file.read_text()
    paths = {json.loads(line)["request"]["path"] for line in text.splitlines()}
    assert "secret/data/liveperson/accounts/audited" in paths
    assert "not-in-the-audit-file" not in text


def test_a_frozen_openbao_is_silent_until_it_thaws(openbao: OpenBao, session: requests.Session) -> None:
    url = f"{openbao.address}/v1/sys/health"
    with openbao.frozen(), pytest.raises(requests.Timeout):
        session.get(url, timeout=0.3)
    assert session.get(url, timeout=5).status_code == 200


def test_openbao_starts_again_at_the_same_address_and_ends_when_frozen(tmp_path: Path) -> None:
    with OpenBao(tmp_path, tls=False) as openbao:
        openbao.put_account(ACCOUNT, {"client_id": "c"})
        openbao.kill()
        openbao.start()
        with pytest.raises(hvac.exceptions.InvalidPath):  # dev mode forgets
            openbao.client.secrets.kv.v2.read_secret_version(
                f"liveperson/accounts/{ACCOUNT}", raise_on_deleted_version=True
            )
        process = openbao.process
        with openbao.frozen():
            openbao.stop()
        assert process
        assert process.returncode not in (None, -signal.SIGKILL)
        assert openbao.process is None


def test_an_openbao_that_dies_says_why(tmp_path: Path) -> None:
    openbao = OpenBao(tmp_path, tls=False)
    port = int(openbao.address.rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        with pytest.raises(RuntimeError, match="address already in use"):
            openbao.__enter__()
    assert openbao.process is None


def is_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_openbao_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib, sandbox.openbao\n"
        "with sandbox.openbao.OpenBao(pathlib.Path(sys.argv[1]), tls=False) as openbao:\n"
        "    print(openbao.address, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(sandbox.__file__).parents[1]
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        host, port = parent.stdout.readline().strip().removeprefix("http://").split(":")
        assert is_open(host, int(port))
        os.kill(parent.pid, signal.SIGKILL)
    give_up = time.monotonic() + 30
    while is_open(host, int(port)):
        assert time.monotonic() < give_up
        time.sleep(0.02)
