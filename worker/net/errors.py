"""Why there is no answer, in words that give nothing away."""

import socket
import ssl
from typing import Final

import requests
import urllib3

_ALERTS = {
    "_CERTIFICATE_REQUIRED": "it asks for a client certificate",
    "_CERTIFICATE_EXPIRED": "the client certificate has expired",
    "_UNKNOWN_CA": "it refuses the client certificate",
    "_BAD_CERTIFICATE": "it refuses the client certificate",
    "_CERTIFICATE_UNKNOWN": "it refuses the client certificate",
}
"""A server's verdict on our certificate, by the end of OpenSSL's name for it."""


class ExchangeError(Exception):
    """There is no usable answer. The text names host and cause, and contains no path, header or body."""

    def __init__(self, detail: str, remedy: str | None = None, *, timed_out: bool = False) -> None:
        """
        :param remedy: what to do about it; it ends the text.
        :param timed_out: no complete answer came by the deadline.
        """
        super().__init__(f"{detail}: {remedy}" if remedy else detail)
        self.detail: Final = detail
        self.remedy: Final = remedy
        self.timed_out: Final = timed_out


def is_timeout(error: BaseException) -> bool:
    """Return True if the error's cause is a deadline that passed."""
    return any(isinstance(link, TimeoutError) for link in _causes(error))


class RedirectError(ExchangeError):
    """A redirect was not followed."""

    def __init__(self, text: str, response: requests.Response) -> None:
        super().__init__(text)
        self.response = response


def describe(error: BaseException, timeout: float) -> str:
    """Return the innermost known cause in words, without the library's text, which contains URLs and bodies."""
    chain = _causes(error)
    known = {
        ssl.SSLCertVerificationError: "its certificate is refused: {0.verify_message}",
        ssl.SSLError: "{1}",
        socket.gaierror: "the host name cannot be resolved",
        TimeoutError: f"no complete answer within {timeout:g} s",
        ConnectionRefusedError: "connection refused",
        ConnectionError: "connection lost",
        urllib3.exceptions.DecodeError: "the answer is compressed, though that was not asked for",
        urllib3.exceptions.ProxyError: "the proxy refused or failed",
        RuntimeError: "no thread can be started",
    }
    for link in reversed(chain):
        for kind, text in known.items():
            if isinstance(link, kind):
                by_proxy = any(isinstance(each, urllib3.exceptions.ProxyError) for each in chain if each is not link)
                return ("the proxy failed: " if by_proxy else "") + text.format(link, _tls_failure(link))
    root = chain[-1]
    system = root.strerror if isinstance(root, OSError) else None
    return system.lower() if system else f"the answer is broken ({type(root).__name__})"


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and what caused it, the innermost last."""
    chain: list[BaseException] = []
    link: object = error
    while isinstance(link, BaseException) and link not in chain:
        chain.append(link)
        inner = [getattr(link, "reason", None), *link.args, link.__cause__, link.__context__]
        link = next((each for each in inner if isinstance(each, BaseException)), None)
    return chain


def _tls_failure(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if not isinstance(reason, str):  # OpenSSL has none where the connection was reset
        return "connection lost"
    return "TLS failed: " + next((text for end, text in _ALERTS.items() if reason.endswith(end)), reason)
