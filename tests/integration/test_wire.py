"""What goes over the wire to LivePerson, byte for byte."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
import trustme
from pydantic import SecretStr

from tests.builders import SAMPLE
from tests.integration.servers import Answering, http
from worker import net
from worker.core.account import Account
from worker.liveperson.domains import Domains
from worker.liveperson.sentinel import SentinelClient

ACCOUNT = "le81823118"
CLIENT_ID = "75588e18-0213-4e33-8174-883acac7e3c4"
SOON = timedelta(seconds=5)
AGENT = f"appjwt-worker/{version('appjwt-worker')}"
TOKEN = SAMPLE


@dataclass
class Line:
    """A TLS server that keeps what it got, and a session that trusts it."""

    server_tls: ssl.SSLContext
    session: requests.Session


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)
    with net.session(user_agent=AGENT, ca_cert=str(tmp_path / "ca.pem")) as session:
        yield Line(tls, session)


@pytest.mark.parametrize(
    ("secret", "encoded"),
    [
        ("0a1b2c3d4e", "0a1b2c3d4e"),
        # all that an unencoded form would tear apart, or a server would read as something else
        ("a+b&c=d%e/f?g#h;i~j'k", "a%2Bb%26c%3Dd%25e%2Ff%3Fg%23h%3Bi~j%27k"),
    ],
)
def test_the_token_request_is_the_documented_one(secret: str, encoded: str, line: Line) -> None:
    account = Account(ACCOUNT, ACCOUNT, CLIENT_ID, SecretStr(secret))
    answer = http(f'{{"access_token": "{TOKEN}", "token_type": "Bearer"}}'.encode())
    with Answering(answer, tls=line.server_tls) as sentinel:
        answered = SentinelClient(line.session, api_version="1.0").mint(account, f"localhost:{sentinel.port}", SOON)
    body = f"client_id={CLIENT_ID}&client_secret={encoded}"
    assert sentinel.requests == [
        (
            f"POST /sentinel/api/account/{ACCOUNT}/app/token?v=1.0&grant_type=client_credentials HTTP/1.1\r\n"
            f"Host: localhost:{sentinel.port}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"User-Agent: {AGENT}\r\n"
            "Accept: application/json\r\n"
            "Accept-Encoding: identity\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"\r\n{body}"
        ).encode()
    ]
    assert answered.raw.get_secret_value() == TOKEN
    assert answered.token_type == "Bearer"


@pytest.mark.parametrize(
    ("told", "taken"),
    [("bearer", "bearer"), ("x" * 17, "Bearer"), ("two words", "Bearer"), (["Bearer"], "Bearer"), (None, "Bearer")],
)
def test_a_token_type_is_a_word_or_the_usual_one_for_readers_of_the_token_see_it(
    told: object, taken: str, line: Line
) -> None:
    account = Account(ACCOUNT, ACCOUNT, CLIENT_ID, SecretStr("0a1b2c3d4e"))
    answer = http(json.dumps({"access_token": TOKEN, "token_type": told}).encode())
    with Answering(answer, tls=line.server_tls) as sentinel:
        answered = SentinelClient(line.session, api_version="1.0").mint(account, f"localhost:{sentinel.port}", SOON)
    assert answered.token_type == taken


def test_the_look_up_of_the_host_is_the_documented_one(line: Line) -> None:
    account = Account(ACCOUNT, ACCOUNT, CLIENT_ID, SecretStr("0a1b2c3d4e"))
    answer = f'{{"service": "sentinel", "account": "{ACCOUNT}", "baseURI": "va.sentinel.liveperson.net"}}'
    with Answering(http(answer.encode()), tls=line.server_tls) as domain_api:
        domains = Domains(
            line.session,
            url=f"https://localhost:{domain_api.port}",
            cache=timedelta(hours=1),
            allowed_hosts=[".liveperson.net"],
            clock=lambda: 0.0,
        )
        assert domains.sentinel_host(account, SOON) == "va.sentinel.liveperson.net"
    assert domain_api.requests == [
        (
            f"GET /api/account/{ACCOUNT}/service/sentinel/baseURI.json?version=1.0 HTTP/1.1\r\n"
            f"Host: localhost:{domain_api.port}\r\n"
            f"User-Agent: {AGENT}\r\n"
            "Accept: application/json\r\n"
            "Accept-Encoding: identity\r\n"
            "\r\n"
        ).encode()
    ]
