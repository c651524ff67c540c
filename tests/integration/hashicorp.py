"""OpenBao's answers in the forms of HashiCorp's server, Community edition: where the two differ, and nothing else."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from typing import Any

import requests

from tests.integration.servers import Server, http, request

_ENDED = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
_UNKNOWN_NAMESPACE = "error performing token check: failed to look up namespace from the token: no namespace"
_PAGING = "?after="


class HashiCorp(Server):
    """A server in front of an OpenBao that speaks plain HTTP."""

    def __init__(self, address: str) -> None:
        super().__init__(self._converse_as_vault)
        self._address = address
        self._session = requests.Session()
        self._session.trust_env = False
        self.token = ""
        """Of the latest request that had one."""
        self.pages = 0
        """Requests for a further page of a list; it knows no pages, so it sends the whole list with a warning."""
        self.without_namespace: set[str] = set()
        """Tokens whose namespace was removed."""

    async def _converse_as_vault(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            asked = await request(reader)
            writer.write(await asyncio.to_thread(self._answer, asked))
            await writer.drain()

    def _answer(self, asked: bytes) -> bytes:
        head, _, body = asked.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = dict(field.split(": ", 1) for field in fields)
        headers.pop("X-Vault-Namespace", None)
        token = headers.get("X-Vault-Token", "")
        self.token = token or self.token
        path, pages, _ = target.partition(_PAGING)
        answer = self._session.request(method, self._address + path, headers=headers, data=body, allow_redirects=False)
        status: int = answer.status_code
        document: Any = answer.json() if answer.content else None
        if pages:
            self.pages += 1
            document["warnings"] = ["Endpoint ignored these unrecognized parameters: [after]"]
        if path.startswith("/v1/sys/health"):
            document |= {"version": "1.21.4", "enterprise": False}
        if path.startswith("/v1/sys/internal/ui/mounts/") and answer.ok:
            document["data"]["running_plugin_version"] = "v0.25.0+builtin"
        if token and status == requests.codes.forbidden and document["errors"] == ["permission denied"]:
            document["errors"] = [_ENDED]
            self.without_namespace |= {token} if token.count(".") > 1 else set()
        if token in self.without_namespace:
            status, document = 500, {"errors": [_UNKNOWN_NAMESPACE]}
        return _http(status, document, answer.headers["Date"])


def _http(status: int, document: Any, date: str) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    return http(body, "Content-Type: application/json", f"Date: {date}", status=f"{status} Said")
