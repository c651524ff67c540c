"""A LivePerson on this machine: Domain API, Sentinel, the idp's ConsumerJWS and the Send API, over TLS with a new CA.

Where LivePerson's documentation leaves an answer open (errors above all), this one picks a plausible one; `Fault` has
the others.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import socket
import ssl
import string
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

import jwt
import trustme
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sandbox.faults import DROP, Fault, Faults, Service
from sandbox.wire import Answer, abort, json_response, override_response, send

_HEADER = {"kid": "appjwt-13-05-17", "typ": "JWT", "alg": "RS256"}
_FORM = "application/x-www-form-urlencoded"
_SECRET_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_LENGTH = 26


@dataclass(frozen=True)
class Credentials:
    """Credentials that a customer gets from an app installation."""

    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True)
class Seen:
    """One request that a service took."""

    service: Service
    account_id: str
    region: str | None
    """None at the Domain API, which has none."""
    status: int
    """0 where the client got no whole answer."""
    fingerprint: str | None = None
    """Of the AppJWT issued: the first 16 hex digits of its SHA-256."""


@dataclass
class _App:
    """An app installed for an account, and the last token it was given."""

    credentials: Credentials
    last_token: str = field(default="", repr=False)
    last_exp: int = 0


@dataclass
class _Account:
    region: str
    apps: dict[str, _App] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """One request as a service sees it."""

    account_id: str
    region: str | None
    path: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    fault: Fault
    now: float
    """The server's clock."""


_Responder = Callable[[_Call], Answer]
_Route = tuple[Service, str, str, _Responder]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LivePerson:
    """The services of LivePerson for made-up accounts, on free loopback ports, in one thread of their own.

    Accounts, faults and `token_life` may be changed from any thread while it runs: each change is a single step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        token_life: timedelta = timedelta(hours=1),
        regions: tuple[str, ...] = ("va", "lo"),
    ) -> None:
        ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        ca.cert_pem.write_to_path(self.ca_file)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert("localhost", "127.0.0.1", "*.proxied.invalid").configure_cert(self._tls)

        self.published_keys: list[RSAPublicKey] = []
        """Keys in the JWKS: all so far; remove those to be forgotten."""
        self.rotate_key()

        self.token_life = token_life
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.domain_api = ""
        """Base URL; known once it runs, as are `hosts`."""
        self.hosts: dict[str, str] = {}
        """Region to `localhost:PORT`, as the Domain API returns it."""
        self._regions = regions
        self._accounts: dict[str, _Account] = {}
        self._thread = Thread(target=self._run, name="liveperson", daemon=True)
        self._started: Future[Callable[[], object]] = Future()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.result()()
        self._thread.join()

    # Accounts

    def add_account(
        self,
        account_id: str,
        region: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> Credentials:
        """Install an app for an account, new or known; a region moves it there (a new one: the first)."""
        if region not in (None, *self._regions):
            raise ValueError(f"no region {region!r} here, only {', '.join(self._regions)}")
        account = self._accounts.setdefault(account_id, _Account(region or self._regions[0]))
        account.region = region or account.region
        credentials = Credentials(client_id or str(uuid.uuid4()), client_secret or _new_secret())
        account.apps[credentials.client_id] = _App(credentials)
        return credentials

    def rotate(self, account_id: str, client_id: str) -> Credentials:
        """Give an app a new secret; the old one is refused from now on."""
        app = self._accounts[account_id].apps[client_id]
        app.credentials = Credentials(client_id, _new_secret())
        return app.credentials

    def remove(self, account_id: str, client_id: str | None = None) -> None:
        """Uninstall one app, or forget the whole account."""
        if client_id is None:
            del self._accounts[account_id]
        else:
            del self._accounts[account_id].apps[client_id]

    @property
    def public_key_pem(self) -> str:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def rotate_key(self, *, publish: bool = True) -> None:
        """Sign with a new key from now on. The kid stays the same, as LivePerson's does."""
        # Cached as an object: parsing a PEM at each signature would take a hundred times as long as signing.
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if publish:
            self.published_keys.append(self._key.public_key())

    def mints(self, account_id: str | None = None) -> int:
        """Count the token requests that were answered with a token, for one account or all."""
        return sum(
            seen.service == "sentinel"
            and seen.status == HTTPStatus.OK
            and seen.fingerprint is not None
            and account_id in (None, seen.account_id)
            for seen in self.seen
        )

    # The services: from a call to an answer

    def _domain(self, call: _Call) -> Answer:
        if call.query.get("version") != "1.0":
            return json_response(400, {"error": "version=1.0 is required"})
        if (account := self._accounts.get(call.account_id)) is None:
            return json_response(404, {"error": "no such account"})
        entries = {
            service: {"service": service, "account": call.account_id, "baseURI": self.hosts[account.region]}
            for service in ("sentinel", "idp", "asyncMessagingEnt")
        }
        if (service := call.path.get("service")) is None:
            return json_response(200, {"baseURIs": list(entries.values())})
        if service not in entries:
            return json_response(404, {"error": "no such service"})
        return json_response(200, entries[service])

    def _sentinel_v1(self, call: _Call) -> Answer:
        if call.query.get("v") != "1.0" or call.query.get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "v=1.0 and grant_type=client_credentials are required")
        if "client_secret" in call.query:  # it would end up in access logs
            return _oauth_error(400, "invalid_request", "credentials belong in the body")
        return self._grant(call)

    def _sentinel_v2(self, call: _Call) -> Answer:
        if dict(parse_qsl(call.body.decode(errors="replace"))).get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "grant_type=client_credentials is required in the body")
        return self._grant(call)

    def _jwks(self, call: _Call) -> Answer:
        del call
        keys = [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key)) for key in self.published_keys]
        return json_response(
            200, {"keys": [{**key, "kid": _HEADER["kid"], "use": "sig", "alg": "RS256"} for key in keys]}
        )

    def _grant(self, call: _Call) -> Answer:
        """Check account and credentials, as every version of the API does, and mint."""
        if call.headers.get("Content-Type", "").partition(";")[0].strip().lower() != _FORM:
            return _oauth_error(415, "invalid_request", f"the content type must be {_FORM}")
        account = self._accounts.get(call.account_id)
        if account is None or account.region != call.region:
            return _oauth_error(404, "invalid_request", "no such account here")
        form = dict(parse_qsl(call.body.decode(errors="replace")))
        if not {"client_id", "client_secret"} <= form.keys():
            return _oauth_error(400, "invalid_request", "client_id and client_secret are required")
        app = account.apps.get(form["client_id"])
        if app is None or app.credentials != Credentials(form["client_id"], form["client_secret"]):
            return _oauth_error(401, "invalid_client", "unknown client or wrong secret")
        token = self._mint(call, app)
        return json_response(200, {"access_token": token, "token_type": "Bearer"}, _fingerprint(token))

    def _mint(self, call: _Call, app: _App) -> str:
        if call.fault.same_token and app.last_exp > call.now:
            return app.last_token
        iat = int(call.now)
        exp = iat + int(self.token_life.total_seconds())
        claims = {
            "aud": call.account_id,
            "azp": app.credentials.client_id,
            "scope": "msg.consumer",
            "iss": "Sentinel",
            "exp": exp,
            "iat": iat,
        }
        app.last_token = self._signed(_overridden(_HEADER, call.fault.header), _overridden(claims, call.fault.claims))
        app.last_exp = exp
        return app.last_token

    def _consumer_jws(self, call: _Call) -> Answer:
        if call.query.get("v") != "1.0":
            return json_response(400, {"errorCode": 40001, "message": "v=1.0 is required"})
        if refusal := self._refuse_app_jwt(call):
            return refusal
        try:
            consumer = json.loads(call.body)["ext_consumer_id"]
        except (ValueError, KeyError, TypeError):
            return json_response(400, {"errorCode": 40002, "message": "a JSON body with ext_consumer_id is required"})
        claims = {"sub": consumer, "aud": call.account_id, "iss": "idp", "iat": int(call.now)}
        return json_response(201, {"token": self._signed(_HEADER, claims)})

    def _conversation(self, call: _Call) -> Answer:
        """Answer as the Send API does: each command of the body is answered by its id."""
        if call.query.get("v") != "3":
            return json_response(400, {"errorCode": 40001, "message": "v=3 is required"})
        if refusal := self._refuse_app_jwt(call):
            return refusal
        if (jws := call.headers.get("X-LP-ON-BEHALF")) is None:
            return json_response(401, {"errorCode": 40104, "message": "the ConsumerJWS is missing"})
        if not self._is_signed(jws, call.account_id, "iat", "sub"):
            return json_response(401, {"errorCode": 40103, "message": "the ConsumerJWS is invalid"})
        try:
            return json_response(
                200, [{"code": "OK", "reqId": each["id"], "body": {}} for each in json.loads(call.body)]
            )
        except (ValueError, KeyError, TypeError):
            return json_response(400, {"errorCode": 40002, "message": "a JSON list of commands is required"})

    def _refuse_app_jwt(self, call: _Call) -> Answer | None:
        """Return the answer to a call without a valid AppJWT for an account that is here."""
        account = self._accounts.get(call.account_id)
        if account is None or account.region != call.region:
            return json_response(404, {"errorCode": 40401, "message": "no such account here"})
        if not (token := call.headers.get("Authorization")):
            return json_response(401, {"errorCode": 40105, "message": "the AppJWT is missing"})
        if not self._is_signed(token, call.account_id, "exp", "azp"):
            return json_response(401, {"errorCode": 40102, "message": "the AppJWT is invalid or has expired"})
        return None

    def _is_signed(self, token: str, account_id: str, *required: str) -> bool:
        try:
            jwt.decode(
                token,
                self._key.public_key(),
                algorithms=["RS256"],
                audience=account_id,
                options={"require": ["aud", *required]},
            )
        except jwt.InvalidTokenError:
            return False
        return True

    def _signed(self, header: Mapping[str, object], claims: Mapping[str, object]) -> str:
        """Return a JWT made by hand, since faults ask for what PyJWT rightly refuses to make."""
        text = f"{_encoded(_compact(header))}.{_encoded(_compact(claims))}"
        match header.get("alg"):
            case "none":
                signature = b""
            case "HS256":  # the known attack: the public key taken for a shared secret
                signature = hmac.digest(self.public_key_pem.encode(), text.encode(), hashlib.sha256)
            case _:
                signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_encoded(signature)}"

    # The servers

    def _run(self) -> None:
        """Run the thread. `_started` gets its stop function, to be called from any other thread, or its error."""
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - waiting threads must hear of everything
            self._started.set_exception(error)

    async def _serve(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as running:
            domain = "/api/account/{account}/service/"
            host = await self._listen(
                running,
                None,
                ("domain", "GET", domain + "baseURI.json", self._domain),
                ("domain", "GET", domain + "{service}/baseURI.json", self._domain),
            )
            self.domain_api = f"https://{host}"
            for region in self._regions:
                self.hosts[region] = await self._listen(
                    running,
                    region,
                    ("sentinel", "POST", "/sentinel/api/account/{account}/app/token", self._sentinel_v1),
                    ("sentinel", "POST", "/sentinel/api/v2/account/{account}/app/token", self._sentinel_v2),
                    ("jwks", "GET", "/sentinel/well-known/{account:jwks}", self._jwks),
                    ("clock", "GET", "/{account:.{0}}", lambda _: json_response(404, {})),
                    ("idp", "POST", "/api/account/{account}/consumer", self._consumer_jws),
                    ("send", "POST", "/api/account/{account}/messaging/consumer/conversation", self._conversation),
                )
            self._started.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
            await stopped.wait()

    async def _listen(self, running: AsyncExitStack, region: str | None, *routes: _Route) -> str:
        """Serve some routes on a free port until `running` ends; return `localhost:PORT`."""
        listener = socket.create_server(("127.0.0.1", 0))
        host = f"localhost:{listener.getsockname()[1]}"
        app = web.Application()
        for service, method, path, responder in routes:
            app.router.add_route("*", path, self._handler(service, method, responder, region, host))
        # A handler that hangs or drips is cancelled when the client disconnects.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        running.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=self._tls).start()
        running.callback(_drop_connections, runner)
        return host

    def _handler(self, service: Service, method: str, responder: _Responder, region: str | None, host: str) -> _Handler:
        """Take a request, ask for its fault, answer, and remember it before the client can know."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            account = request.match_info["account"]
            fault = self.faults.take(service, account, host)
            if fault.refuse or fault.hang:
                self.seen.append(Seen(service, account, region, 0))
                if fault.hang:
                    await asyncio.Event().wait()
                return abort(request)
            await asyncio.sleep(fault.delay)
            now = time.time() + fault.skew.total_seconds()
            if (answer := override_response(fault, body)) is None and request.method != method:
                answer = Answer(405, headers={"Allow": method})
            if answer is None:
                path, query, headers = request.match_info, request.query, request.headers
                answer = responder(_Call(account, region, path, query, headers, body, fault, now))
            status = 0 if fault.cut else answer.status
            self.seen.append(Seen(service, account, region, status, answer.fingerprint))
            return await send(request, answer, fault, now)

        return handle


def _drop_connections(runner: web.AppRunner) -> None:
    """Abort the connections, so that stopping takes no time: TLS would wait for clients that hang or stay connected."""
    for connection in runner.server.connections if runner.server else ():
        if connection.transport is not None:
            connection.transport.abort()


def _new_secret() -> str:
    return "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def _oauth_error(status: int, error: str, description: str) -> Answer:
    """RFC 6749, 5.2."""
    return json_response(status, {"error": error, "error_description": description})


def _overridden(values: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in {**values, **overrides}.items() if value is not DROP}


def _compact(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
