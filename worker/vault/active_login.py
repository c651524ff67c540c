"""One login to Vault: client, lease and remaining uses. Creating and replacing logins is left to managed_login."""

import math
import threading
from dataclasses import dataclass, field
from typing import Any, Final

import hvac

RENEW_AT: Final = 0.5
"""Fraction of a lease after which it is renewed."""
RENEW_RETRY: Final = 5.0
"""Seconds between renewals at least, also after one that failed."""
RESERVED_USES: Final = 3
"""Uses of a limited login that are reserved: to renew it, to look it up and to revoke it takes one each."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a login or renewal, on the steady clock."""

    end: float
    renew_at: float
    length: float
    renewable: bool

    @classmethod
    def of(cls, auth: dict[str, Any], now: float) -> "Lease":
        length = float(auth["lease_duration"]) or math.inf
        # not too often, where renewals return ever shorter leases; but before expiry
        renew_at = now + max(length * RENEW_AT, min(RENEW_RETRY, length - 1.0))
        return cls(now + length, renew_at, length, bool(auth["renewable"]))


@dataclass(slots=True, eq=False)
class ActiveLogin:
    """A client with the token of one login, and the number of requests it still allows."""

    client: hvac.Client
    lease: Lease
    uses: float
    """Requests that Vault allows; inf = unlimited."""
    _used: int = 0
    _in_flight: int = 0
    _retired: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_exhausted(self) -> bool:
        return self.uses - self._used <= RESERVED_USES

    def acquire(self) -> bool:
        """Reserve a use for a request; False if none is left."""
        with self._lock:
            if self._retired or self.is_exhausted:
                return False
            self._used += 1
            self._in_flight += 1
            return True

    def refund_use(self) -> None:
        """Take back the use of a request that a rate limit refused: Vault did not look at its token."""
        with self._lock:
            self._used -= 1

    def release(self) -> bool:
        """Finish a request; True if it was the last of a login that was retired."""
        with self._lock:
            self._in_flight -= 1
            return self._retired and not self._in_flight

    def retire(self) -> bool:
        """Allow no more requests; True if none is in flight."""
        with self._lock:
            self._retired = True
            return not self._in_flight

    def count_use(self) -> None:
        """Count a request about the login itself, which no reservation precedes."""
        with self._lock:
            self._used += 1
