"""Requests to LivePerson on the wire, byte for byte."""

import json
import re
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
from tests.integration.servers import Answering, http, server_tls
from worker import net
from worker.core.account import Account
from worker.core.appjwt import TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.unchecked import TokenResponse
from worker.liveperson.domain_api import DomainApi
from worker.liveperson.sentinel import SentinelClient

ACCOUNT = "le81823118"
CLIENT_ID = "75588e18-0213-4e33-8174-883acac7e3c4"
SOON = timedelta(seconds=5)
AGENT = f"appjwt-worker/{version('appjwt-worker')}"
TOKEN = SAMPLE


@dataclass
class Line:
    """TLS for a server, and a session that trusts it."""

    server_tls: ssl.SSLContext
    session: requests.Session


@pytest.fixture
def line(ca: trustme.CA, ca_file: Path) -> Iterator[Line]:
    with net.session(user_agent=AGENT, ca_cert=str(ca_file)) as session:
        yield Line(server_tls(ca), session)


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
        client = SentinelClient(line.session, api_version="1.0")
        response = client.request_token(account, f"localhost:{sentinel.port}", SOON)
    body = f"client_id={CLIENT_ID}&client_secret={encoded}"
    assert sentinel.requests == [
        (
            f"POST /sentinel/api/account/{ACCOUNT}/app/token?v=1.0&grant_type=client_credentials HTTP/1.1\r\n"
            f"Host: localhost:{sentinel.port}\r\n"
            f"User-Agent: {AGENT}\r\n"
            "Accept: application/json\r\n"
            "Accept-Encoding: identity\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"\r\n{body}"
        ).encode()
    ]
    assert response.raw.get_secret_value() == TOKEN
    assert response.token_type == "Bearer"


def answered(line: Line, document: object, secret: str = "0a1b2c3d4e") -> TokenResponse:
    account = Account(ACCOUNT, ACCOUNT, CLIENT_ID, SecretStr(secret))
    with Answering(http(json.dumps(document).encode()), tls=line.server_tls) as sentinel:
        client = SentinelClient(line.session, api_version="1.0")
        return client.request_token(account, f"localhost:{sentinel.port}", SOON)


@pytest.mark.parametrize(
    ("extra_fields", "taken"),
    [
        ({"token_type": "Bearer"}, "Bearer"),
        ({"token_type": "bearer"}, "bearer"),
        ({"token_type": "BEARER"}, "BEARER"),
        ({"token_type": None}, "Bearer"),
        ({}, "Bearer"),
    ],
)
def test_a_token_type_may_be_bearer_in_any_case_or_absent(
    extra_fields: dict[str, object], taken: str, line: Line
) -> None:
    assert answered(line, {"access_token": TOKEN, **extra_fields}).token_type == taken


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("mac", "mac"),
        ("DPoP", "DPoP"),
        ("Bearer ", "Bearer"),
        ("", "nothing"),
        (["Bearer"], "['Bearer']"),
        ("x" * 99, "x" * 40),
        ("0a1b2c3d4e5f6a", "[redacted]"),
    ],
)
def test_a_token_of_another_type_is_refused_for_nobody_knows_how_to_use_it(
    word: object, shown: str, line: Line
) -> None:
    with pytest.raises(TokenRefusedError) as caught:
        answered(line, {"access_token": TOKEN, "token_type": word}, secret="0a1b2c3d4e5f6a")
    assert caught.value.check == "token_type"
    assert str(caught.value) == f"token_type: expected Bearer, got {shown}"


def refused(line: Line, answer: bytes) -> RefreshError:
    """Return the error of a token request that is answered like this."""
    account = Account(ACCOUNT, ACCOUNT, CLIENT_ID, SecretStr("0a1b2c3d4e"))
    with Answering(answer, tls=line.server_tls) as sentinel, pytest.raises(RefreshError) as caught:
        SentinelClient(line.session, api_version="1.0").request_token(account, f"localhost:{sentinel.port}", SOON)
    assert caught.value.stage is Stage.SENTINEL
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Welcome</html>",
        b"[]",
        b"[1]",
        b"null",
        b"7",
        b'{"access_token": 7}',
        b'{"access_token": ""}',
        b'{"access_token": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda body: body[:20],
)
@pytest.mark.parametrize("charset", ["utf-8", "undefined"])
def test_a_success_without_a_token_is_told_as_that(body: bytes, charset: str, line: Line) -> None:
    error = refused(line, http(body, f"Content-Type: application/json; charset={charset}"))
    assert (error.kind, error.status) == (Kind.TRANSIENT, 200)
    assert re.fullmatch(r"localhost:\d+ answers 200 without an access_token", str(error))


@pytest.mark.parametrize(
    ("body", "header", "said"),
    [
        (b"<html>Sorry</html>", "Content-Type: text/html", ": <html>Sorry</html>"),
        (b"\xff", "Content-Type: text/html; charset=undefined", ""),
        (bytes(range(256)), "Content-Type: x/y", ': !"#'),
        (b"", f"Retry-After: {'9' * 5000}", ""),
        (b"", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", ""),
        (b"", "Date: Fri, 31 Dec 9999 23:59:59 GMT", ""),
    ],
    ids=["a page", "a charset that is no codec", "no text", "a long wait", "a wait without end", "a date without end"],
)
def test_an_error_is_told_with_its_beginning_whatever_its_body_and_headers_are(
    body: bytes, header: str, said: str, line: Line
) -> None:
    error = refused(line, http(body, header, status="503 Later"))
    assert (error.kind, error.status) == (Kind.TRANSIENT, 503)
    assert re.match(rf"localhost:\d+ answers 503{re.escape(said)}", str(error))
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("invalid_client", Kind.PERMANENT, 400),
        ("invalid_grant", Kind.PERMANENT, 400),
        ("invalid_request", Kind.PERMANENT, 400),
        ("invalid_scope", Kind.PERMANENT, 400),
        ("unauthorized_client", Kind.PERMANENT, 400),
        ("unsupported_grant_type", Kind.PERMANENT, 400),
        ("temporarily_unavailable", Kind.TRANSIENT, 200),
        ({"internalCode": 7}, Kind.TRANSIENT, 200),
    ],
)
def test_an_oauth_error_with_status_200_is_taken_as_the_400_that_it_should_have_been(
    code: object, kind: Kind, status: int, line: Line
) -> None:
    with pytest.raises(RefreshError) as caught:
        answered(line, {"error": code, "error_description": "no 0a1b2c3d4e5f6a"}, secret="0a1b2c3d4e5f6a")
    error = caught.value
    assert (error.stage, error.kind, error.status) == (Stage.SENTINEL, kind, status)
    said = json.dumps({"error": code, "error_description": "no [redacted]"})
    assert re.fullmatch(rf"localhost:\d+ answers 200: {re.escape(said)}", str(error))


def test_the_look_up_of_the_host_is_the_documented_one(line: Line) -> None:
    answer = f'{{"service": "sentinel", "account": "{ACCOUNT}", "baseURI": "va.sentinel.liveperson.net"}}'
    with Answering(http(answer.encode()), tls=line.server_tls) as domain_api:
        found = DomainApi(line.session, url=f"https://localhost:{domain_api.port}").look_up(ACCOUNT, SOON)
    assert found == "va.sentinel.liveperson.net"
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


@pytest.mark.parametrize("body", [b"[]", b"[[]]", b"{}", b"7", b'{"baseURIs": null}', b'{"baseURI": ""}'])
def test_a_look_up_that_names_no_host_says_so(body: bytes, line: Line) -> None:
    with Answering(http(body), tls=line.server_tls) as domain_api, pytest.raises(RefreshError) as caught:
        DomainApi(line.session, url=f"https://localhost:{domain_api.port}").look_up(ACCOUNT, SOON)
    assert (caught.value.stage, caught.value.kind) == (Stage.DOMAIN, Kind.PERMANENT)
    assert str(caught.value) == f"the Domain API names no Sentinel for account {ACCOUNT}"
