"""A Kubernetes API server, as far as a login to Vault needs one: service account tokens and the TokenReview API."""

import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NAMESPACE: Final = "liveperson"
ACCOUNT: Final = "appjwt-worker"
AUDIENCE: Final = "vault"
"""Of the tokens that a pod shows to Vault."""
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
CREDENTIAL_ID: Final = "authentication.kubernetes.io/credential-id"
"""The field of a review that identifies the token."""

_VAULT: Final = ("vault", "vault")
"""Namespace and name of the service account that Vault asks for reviews with: the one with system:auth-delegator."""
_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"


class Kubernetes:
    """It serves from `start` to `stop`, each time at the same address."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key_pem = (
            self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        )
        authority = trustme.CA()
        self.ca_pem = authority.cert_pem.bytes().decode()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.reviewed: list[dict[str, Any]] = []
        """The status of each review so far."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_port
        # the handshake is left to the thread of the connection: a slow client delays no other
        self._server.socket = self._tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="kubernetes").start()

    def stop(self) -> None:
        """Refuse connections from now on. Has no effect if stopped already."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def token(
        self,
        namespace: str = NAMESPACE,
        name: str = ACCOUNT,
        *,
        audience: str = AUDIENCE,
        age: timedelta = timedelta(0),
        issuer: str = ISSUER,
    ) -> str:
        """Return a service account's token, as the TokenRequest API makes it and the kubelet projects it into a pod."""
        issued = int(time.time() - age.total_seconds())
        claims = {
            "aud": [audience],
            "exp": issued + 3600,
            "iat": issued,
            "iss": issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": f"{name}-0", "uid": _uid(namespace, name, "pod")},
                "serviceaccount": {"name": name, "uid": _uid(namespace, name)},
            },
            "nbf": issued,
            "sub": _username(namespace, name),
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "sandbox"})

    def reviewer_token(self) -> str:
        """Return the token that Vault shows to ask for reviews."""
        return self.token(*_VAULT, audience=ISSUER)

    def review(self, authorization: str, review: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a TokenReview."""
        asking = self._authenticate(authorization.removeprefix("Bearer "), [ISSUER])
        if not asking["authenticated"]:
            return 401, _failure(401, "Unauthorized")
        if asking["user"]["username"] != _username(*_VAULT):
            return 403, _failure(403, "tokenreviews.authentication.k8s.io is forbidden")
        spec = review["spec"]
        status = self._authenticate(spec["token"], spec.get("audiences") or [ISSUER])
        self.reviewed.append(status)
        return 201, {**review, "status": status}

    def _authenticate(self, token: str, audiences: Iterable[str]) -> dict[str, Any]:
        """Return the status of a TokenReview."""
        try:
            claims = jwt.decode(token, self._key.public_key(), algorithms=["RS256"], audience=audiences, issuer=ISSUER)
        except jwt.InvalidTokenError as error:
            return {"authenticated": False, "user": {}, "error": f"[invalid bearer token, {error}]"}
        namespace, account = claims["kubernetes.io"]["namespace"], claims["kubernetes.io"]["serviceaccount"]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        extra = {CREDENTIAL_ID: [credential_id(token)]}
        return {
            "authenticated": True,
            "user": {"username": claims["sub"], "uid": account["uid"], "groups": groups, "extra": extra},
            "audiences": [each for each in audiences if each in claims["aud"]],
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kubernetes = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == _REVIEWS:
                    status, answer = kubernetes.review(self.headers.get("Authorization", ""), json.loads(body))
                else:
                    status, answer = 404, _failure(404, "not found")
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler


def credential_id(token: str) -> str:
    """Return the identifier of a token in a review."""
    return f"JTI={jwt.decode(token, options={'verify_signature': False})['jti']}"


def _username(namespace: str, name: str) -> str:
    return f"system:serviceaccount:{namespace}:{name}"


def _uid(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names)))


def _failure(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}
