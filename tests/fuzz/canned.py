"""A requests session whose every answer is the one it was given: the parts behind it are the real ones."""

from datetime import timedelta
from typing import Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict


class Canned(BaseAdapter):
    """Sits where net's adapter does. What that one refuses by itself is the business of the hostile servers."""

    def __init__(self) -> None:
        super().__init__()
        self.status, self.body, self.asked = 200, b"", ""
        self.headers: dict[str, str] = {}

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self.asked = request.url or ""
        made = requests.Response()
        made.status_code, made._content, made.request = self.status, self.body, request  # noqa: SLF001 - as tests of requests do
        made.headers = CaseInsensitiveDict(self.headers)
        made.elapsed = timedelta(milliseconds=1)
        return made

    def close(self) -> None:
        pass


class _Session(requests.Session):
    secrets: tuple[str, ...] = ()
    """Header values of vault.headers in net's session: none here."""


def canned() -> tuple[requests.Session, Canned]:
    session, adapter = _Session(), Canned()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session, adapter
