"""Read an account's AppJWT with hvac: `headers()` for each request, `refused()` when LivePerson answers 401.

pip install hvac; VAULT_ADDR=… VAULT_TOKEN=… ACCOUNT=le81823118 python read_token.py
VAULT_NAMESPACE and VAULT_CACERT where Vault needs them.
"""

import os
import threading
import time
from typing import Any

import hvac

_MOUNT, _PREFIX = "secret", "liveperson/tokens"
_TIMEOUT = 3  # seconds, as are the others: a Vault that does not answer must not hold up your requests
_READ_EVERY = 300
_RETRY_AFTER = 10  # counted from the end of the attempt


class AppJWT:
    def __init__(self, account: str) -> None:
        # hvac takes VAULT_ADDR, VAULT_TOKEN and VAULT_CACERT from the environment, but not VAULT_NAMESPACE
        self._vault = hvac.Client(timeout=_TIMEOUT, namespace=os.environ.get("VAULT_NAMESPACE"))
        self._path = f"{_PREFIX}/{account}"
        self._secret: dict[str, Any] = {}
        self._error: Exception | None = None
        self._next_read = 0.0
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """Return the header for the Connector API; other LivePerson APIs want "Bearer " before the token."""
        with self._lock:
            if time.monotonic() >= self._next_read:
                self._read()
            if self._remaining() <= 0:
                raise LookupError(f"Vault has no live AppJWT at {self._path}") from self._error
            return {"Authorization": self._secret["access_token"]}

    def refused(self, token: str) -> bool:
        """Return True if Vault has another token than the one that LivePerson refused (40102): try again once."""
        with self._lock:
            self._read()
            return bool(self._secret.get("access_token", token) != token)

    def _read(self) -> None:
        pause = 0.0
        try:
            read = self._vault.secrets.kv.v2.read_secret_version
            answer = read(self._path, mount_point=_MOUNT, raise_on_deleted_version=True)
            self._secret, self._error = answer["data"]["data"], None
            pause = min(_READ_EVERY, self._remaining() - 60)  # in its last minute a token is read more often
        except Exception as error:
            self._error = error  # whatever it is, the token at hand serves until it expires
        self._next_read = time.monotonic() + max(pause, _RETRY_AFTER)

    def _remaining(self) -> float:
        return float(self._secret.get("exp", 0)) - time.time()


if __name__ == "__main__":
    print(AppJWT(os.environ["ACCOUNT"]).headers()["Authorization"])
