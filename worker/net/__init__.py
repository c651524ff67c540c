"""One bounded HTTP exchange: a deadline for all of it, a size cap, no redirect, the right CA, the proxy.

Both outside worlds go through here, by a requests session: LivePerson's clients have it, and hvac is given it for
Vault. What an answer means is left to the callers.
"""

from worker.net.http import DATE_RESOLUTION, MAX_ANSWER, ExchangeError, json_of, server_time, session

__all__ = ["DATE_RESOLUTION", "MAX_ANSWER", "ExchangeError", "json_of", "server_time", "session"]
