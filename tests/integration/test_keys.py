"""Checks of signatures, with the keys that the sandbox's Sentinel publishes and with pinned ones."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
import requests
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from structlog.testing import capture_logs

from sandbox.faults import Fault
from sandbox.liveperson import LivePerson
from tests.builders import ISSUED, SAMPLE, parse_account
from tests.fakes.clock import MINUTE, SECOND, Clock
from tests.integration.processes import eventually
from tests.integration.servers import Answering, http, server_tls
from worker import net
from worker.core import appjwt
from worker.core.account import Account, ApiVersion
from worker.core.appjwt import AppJWT, Check, Expected, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.liveperson.keys import PinnedKeys, PublishedKeys
from worker.liveperson.sentinel import SentinelClient

ACCOUNT = "le81823118"
SOON = timedelta(seconds=5)


@dataclass
class Signed:
    """A LivePerson that signs tokens, and who verifies them by its published keys, by a clock of the test."""

    liveperson: LivePerson
    session: requests.Session
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.keys = PublishedKeys(self.session, clock=self.clock)
        self._app = asdict(self.liveperson.add_account(ACCOUNT))

    @property
    def host(self) -> str:
        return self.liveperson.hosts["va"]

    def token(self) -> AppJWT:
        answer = SentinelClient(self.session, api_version="1.0").request_token(
            parse_account(ACCOUNT, self._app), self.host, SOON
        )
        return appjwt.validate(answer.raw.get_secret_value(), Expected(), answer.now)

    def verify(self, token: AppJWT, host: str | None = None, timeout: timedelta = SOON) -> None:
        self.keys.verify(token, host or self.host, timeout)

    def fetches(self, region: str = "va") -> int:
        return sum(seen.service == "jwks" and seen.region == region for seen in self.liveperson.seen)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LivePerson, requests.Session]]:
    with (
        LivePerson(tmp_path_factory.mktemp("liveperson")) as liveperson,
        net.session(user_agent="test", ca_cert=str(liveperson.ca_file)) as session,
    ):
        yield liveperson, session


@pytest.fixture
def signed(running: tuple[LivePerson, requests.Session]) -> Iterator[Signed]:
    liveperson, session = running
    yield Signed(liveperson, session)
    liveperson.faults.reset()
    liveperson.seen.clear()
    liveperson.published_keys.clear()
    liveperson.rotate_key()


def publishing(document: object) -> Fault:
    return Fault(answer=json.dumps(document).encode())


def refused(signed: Signed, token: AppJWT) -> str:
    """Return the text of the refusal; it is one by the signature."""
    with pytest.raises(TokenRefusedError) as caught:
        signed.verify(token)
    assert caught.value.check == Check.SIGNATURE
    return str(caught.value)


def test_a_published_key_vouches_for_many_tokens_and_is_fetched_once(signed: Signed) -> None:
    for _ in range(3):
        signed.verify(signed.token())
    assert signed.fetches() == 1


def test_threads_that_come_together_share_one_fetch(signed: Signed) -> None:
    token = signed.token()
    threads = [threading.Thread(target=signed.verify, args=[token]) for _ in range(8)]
    with signed.liveperson.faults.on(Fault(delay=0.1), service="jwks"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert signed.fetches() == 1


def test_each_host_has_its_own_keys(signed: Signed) -> None:
    token = signed.token()
    signed.verify(token, signed.liveperson.hosts["va"])
    signed.verify(token, signed.liveperson.hosts["lo"])
    assert (signed.fetches("va"), signed.fetches("lo")) == (1, 1)


def test_a_new_key_is_found_by_asking_anew_once_the_floor_is_over(signed: Signed) -> None:
    signed.verify(signed.token())
    signed.liveperson.rotate_key()
    token = signed.token()
    signed.clock.advance(MINUTE - SECOND)
    refused(signed, token)
    assert signed.fetches() == 1
    signed.clock.advance(SECOND)
    signed.verify(token)
    assert signed.fetches() == 2


def test_an_unknown_key_makes_no_storm(signed: Signed) -> None:
    signed.verify(signed.token())
    signed.liveperson.rotate_key(publish=False)
    token = signed.token()
    for _ in range(5):
        signed.clock.advance(MINUTE)
        for _ in range(10):
            assert "expected one by a key that localhost" in refused(signed, token)
    assert signed.fetches() == 6


def test_the_kid_identifies_no_key_so_each_is_tried(signed: Signed) -> None:
    old = signed.token()
    signed.liveperson.rotate_key()
    new = signed.token()
    assert old.kid == new.kid
    signed.verify(old)
    signed.verify(new)
    assert signed.fetches() == 1


def test_a_key_of_another_kid_vouches_too(signed: Signed) -> None:
    keys = [jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True) for key in signed.liveperson.published_keys]
    document = {"keys": [{**key, "kid": "another"} for key in keys]}
    with signed.liveperson.faults.on(publishing(document), service="jwks"):
        signed.verify(signed.token())


def test_keys_that_are_none_of_ours_are_passed_over(signed: Signed) -> None:
    good = jwt.algorithms.RSAAlgorithm.to_jwk(signed.liveperson.published_keys[-1], as_dict=True)
    elliptic = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    private = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048), as_dict=True)
    others: list[object] = [elliptic, private, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, {"kty": "new"}, {}, None, 1]
    with signed.liveperson.faults.on(publishing({"keys": [*others, good]}), service="jwks"):
        signed.verify(signed.token())


def test_a_key_that_is_withdrawn_vouches_for_an_hour_at_most(signed: Signed) -> None:
    token = signed.token()
    signed.verify(token)
    signed.liveperson.rotate_key()
    del signed.liveperson.published_keys[0]
    signed.clock.advance(60 * MINUTE - SECOND)
    signed.verify(token)
    signed.clock.advance(SECOND)
    refused(signed, token)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(status=503), "publishes no RSA key (status 503)"),
        (Fault(answer=b"<html>"), "publishes no RSA key (status 200)"),
        (Fault(answer=b"[]"), "publishes no RSA key (status 200)"),
        (Fault(answer=b'{"keys": {}}'), "publishes no RSA key (status 200)"),
        (Fault(refuse=True), "connection lost"),
        (Fault(hang=True), "no complete answer within 2 s"),
        (Fault(redirect_to="https://localhost:1/"), "a redirect (307) to another path was not followed"),
    ],
)
def test_without_keys_the_fault_passes_by_itself_and_is_no_refusal(fault: Fault, text: str, signed: Signed) -> None:
    token = signed.token()
    with signed.liveperson.faults.on(fault, service="jwks"), pytest.raises(RefreshError) as caught:
        signed.verify(token, timeout=2 * SECOND)
    assert not isinstance(caught.value, TokenRefusedError)
    assert text in str(caught.value)
    assert (caught.value.stage, caught.value.kind, caught.value.check) == (
        Stage.CLAIMS,
        Kind.TRANSIENT,
        Check.SIGNATURE,
    )
    signed.clock.advance(5 * SECOND)
    signed.verify(token)


def test_a_jwks_that_is_away_from_the_start_is_asked_every_few_seconds_only(signed: Signed) -> None:
    token = signed.token()
    with signed.liveperson.faults.on(Fault(status=500), service="jwks"):
        for _ in range(3):
            for _ in range(5):
                with pytest.raises(RefreshError, match="status 500"):
                    signed.verify(token)
            signed.clock.advance(5 * SECOND)
    assert signed.fetches() == 3


def test_keys_that_are_known_serve_on_while_no_new_ones_can_be_fetched(signed: Signed) -> None:
    old = signed.token()
    signed.verify(old)
    signed.liveperson.rotate_key()
    new = signed.token()
    signed.clock.advance(61 * MINUTE)
    with signed.liveperson.faults.on(Fault(status=500), service="jwks"):
        signed.verify(old)
        with pytest.raises(RefreshError, match="status 500") as caught:
            signed.verify(new)
        assert caught.value.kind is Kind.TRANSIENT, "nobody knows yet whether its key is published"
    assert signed.fetches() == 2


def test_a_host_that_hangs_keeps_no_other_waiting(signed: Signed) -> None:
    token, hosts = signed.token(), signed.liveperson.hosts

    def wait_in_vain() -> None:
        with pytest.raises(RefreshError, match="no complete answer"):
            signed.verify(token, hosts["lo"], 5 * SECOND)

    with signed.liveperson.faults.on(Fault(hang=True), host=hosts["lo"], service="jwks"):
        waiting = threading.Thread(target=wait_in_vain)
        waiting.start()
        eventually(lambda: signed.fetches("lo"))
        signed.verify(token, hosts["va"])
        assert waiting.is_alive()
        waiting.join()


# Pinned keys


@pytest.fixture
def pem_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.pem"


def pem_of(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate_of(key: rsa.RSAPublicKey) -> bytes:
    """Return a certificate of some issuer: a pinned one is trusted for being pinned."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sentinel")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key, x509.random_serial_number(), now, now + timedelta(days=1))
    return builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()).public_bytes(Encoding.PEM)


def test_two_keys_and_a_certificate_in_one_file_all_vouch(signed: Signed, pem_file: Path) -> None:
    tokens = [signed.token()]
    for _ in range(2):
        signed.liveperson.rotate_key()
        tokens.append(signed.token())
    one, two, three = signed.liveperson.published_keys
    stray = pem_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    pem_file.write_bytes(b"# keys of Sentinel\n" + pem_of(one) + stray + certificate_of(two) + b"\n" + pem_of(three))
    pinned = PinnedKeys(pem_file)
    for token in tokens:
        pinned.verify(token, signed.host, SOON)

    signed.liveperson.rotate_key()
    with pytest.raises(TokenRefusedError, match=f"signature: expected one by a key in {pem_file}"):
        pinned.verify(signed.token(), signed.host, SOON)
    assert signed.fetches() == 0


def weak_token() -> tuple[AppJWT, rsa.RSAPublicKey]:
    """Return a token signed by a key of 1024 bits, as LivePerson's sample is."""
    key = rsa.generate_private_key(65537, 1024)
    signed = f"{SAMPLE.rpartition('.')[0]}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    raw = f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
    return appjwt.validate(raw, Expected(), ISSUED), key.public_key()


def test_a_weak_pinned_key_verifies_and_is_reported_once_and_by_name(signed: Signed, pem_file: Path) -> None:
    token, weak = weak_token()
    pem_file.write_bytes(pem_of(weak) + certificate_of(weak) + pem_of(signed.liveperson.published_keys[0]))
    with capture_logs() as logs:
        pinned = PinnedKeys(pem_file)
        for _ in range(3):
            pinned.verify(token, signed.host, SOON)
    assert logs == [{"event": "key.weak", "log_level": "warning", "bits": 1024, "source": str(pem_file)}]


def test_a_weak_published_key_is_reported_once_whenever_it_is_fetched(signed: Signed) -> None:
    token, weak = weak_token()
    document = {"keys": [jwt.algorithms.RSAAlgorithm.to_jwk(weak, as_dict=True)]}
    with signed.liveperson.faults.on(publishing(document), service="jwks"), capture_logs() as logs:
        for _ in range(3):
            signed.verify(token)
            signed.clock.advance(61 * MINUTE)
    assert signed.fetches() == 3
    assert logs == [{"event": "key.weak", "log_level": "warning", "bits": 1024, "source": signed.host}]


def test_a_key_of_2048_bits_is_not_weak(signed: Signed, pem_file: Path) -> None:
    pem_file.write_text(signed.liveperson.public_key_pem)
    with capture_logs() as logs:
        PinnedKeys(pem_file).verify(signed.token(), signed.host, SOON)
    assert logs == []


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}])
def test_a_token_that_chooses_its_own_way_of_signing_is_refused(
    header: dict[str, str], signed: Signed, pem_file: Path
) -> None:
    pem_file.write_text(signed.liveperson.public_key_pem)
    app = parse_account(ACCOUNT, asdict(signed.liveperson.add_account(ACCOUNT)))
    with signed.liveperson.faults.on(Fault(header=header)):
        answer = SentinelClient(signed.session, api_version="1.0").request_token(app, signed.host, SOON)
    # core would refuse this before the signature is checked
    token = replace(signed.token(), raw=answer.raw)
    for keys in (PinnedKeys(pem_file), signed.keys):
        with pytest.raises(TokenRefusedError, match="signature: expected"):
            keys.verify(token, signed.host, SOON)


def test_a_token_whose_claims_were_changed_is_refused(signed: Signed) -> None:
    token = signed.token()
    head, claims, signature = token.raw.get_secret_value().split(".")
    refused(signed, replace(token, raw=SecretStr(f"{head}.{claims[::-1]}.{signature}")))


@pytest.mark.parametrize("content", [b"", b"no key", pem_of(ec.generate_private_key(ec.SECP256R1()).public_key())])
def test_a_file_without_an_rsa_key_is_told(content: bytes, pem_file: Path) -> None:
    pem_file.write_bytes(content)
    with pytest.raises(ValueError, match="no RSA public key in it"):
        PinnedKeys(pem_file)


# Version 2.0 of the token request, whose tokens the published keys are for


@pytest.mark.parametrize(("settings", "own"), [("2.0", None), ("1.0", "2.0")])
def test_version_2_0_of_the_token_request_is_the_documented_one(
    settings: ApiVersion, own: ApiVersion | None, signed: Signed, ca: trustme.CA, ca_file: Path
) -> None:
    token = signed.token().raw.get_secret_value()
    account = Account(ACCOUNT, ACCOUNT, "75588e18", SecretStr("a+b&c=d"), api_version=own)
    answer = http(json.dumps({"access_token": token}).encode())
    with (
        net.session(user_agent="test/1", ca_cert=str(ca_file)) as session,
        Answering(answer, tls=server_tls(ca)) as sentinel,
    ):
        client = SentinelClient(session, api_version=settings)
        answered = client.request_token(account, f"localhost:{sentinel.port}", SOON)
    body = "client_id=75588e18&client_secret=a%2Bb%26c%3Dd&grant_type=client_credentials"
    assert sentinel.requests == [
        (
            f"POST /sentinel/api/v2/account/{ACCOUNT}/app/token HTTP/1.1\r\n"
            f"Host: localhost:{sentinel.port}\r\n"
            "User-Agent: test/1\r\n"
            "Accept: application/json\r\n"
            "Accept-Encoding: identity\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"\r\n{body}"
        ).encode()
    ]
    assert (answered.raw.get_secret_value(), answered.token_type) == (token, "Bearer")


def test_of_a_host_with_thousands_of_keys_only_some_are_tried(signed: Signed) -> None:
    """Each costs time on each token, and a host may publish very many."""
    signed.verify(signed.token())
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(signed.liveperson.published_keys[0]))
    other = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
    signed.clock.advance(2 * MINUTE)
    signed.keys = PublishedKeys(signed.session, clock=signed.clock)
    with signed.liveperson.faults.on(publishing({"keys": [other] * 31 + [key]}), service="jwks"):
        signed.verify(signed.token())
    signed.keys = PublishedKeys(signed.session, clock=signed.clock)
    with signed.liveperson.faults.on(publishing({"keys": [other] * 32 + [key]}), service="jwks"):
        assert "publishes" in refused(signed, signed.token())
