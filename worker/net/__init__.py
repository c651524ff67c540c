"""One bounded HTTP exchange: a deadline for all of it, a size limit, no redirect, the right CA, the proxy.

Both outside worlds go through here, by a requests session: LivePerson's clients have it, and hvac is given it for
Vault. What an answer means is left to the callers.
"""

from worker.net.errors import ExchangeError, RedirectError
from worker.net.http import (
    DATE_RESOLUTION,
    MAX_BODY_BYTES,
    Session,
    http_date,
    parse_json,
    retry_after,
    server_time,
    session,
)
from worker.net.proxies import proxy_for
from worker.net.tls import TlsFileError

__all__ = [
    "DATE_RESOLUTION",
    "MAX_BODY_BYTES",
    "ExchangeError",
    "RedirectError",
    "Session",
    "TlsFileError",
    "http_date",
    "parse_json",
    "proxy_for",
    "retry_after",
    "server_time",
    "session",
]
