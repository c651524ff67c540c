"""The AppJWT of an account, by hvac: `headers()` for each request, `refused()` when LivePerson answers 401.

pip install hvac; VAULT_ADDR=… VAULT_TOKEN=… ACCOUNT=le81823118 python read_token.py
"""

import os
import time
from typing import Any

import hvac
import requests

_READ_EVERY = 300  # seconds; at least 19 minutes of life are left then
_TRY_AGAIN_AFTER = 10
_MOUNT, _PREFIX = "secret", "liveperson/tokens"


class AppJWT:
    def __init__(self, account: str, vault: hvac.Client) -> None:
        self._account = account
        self._vault = vault
        self._secret: dict[str, Any] = {}
        self._read_at = float("-inf")

    def headers(self) -> dict[str, str]:
        """For the Connector API: the token as it is. Other LivePerson APIs want "Bearer " before it."""
        if time.monotonic() >= self._read_at:
            self._read_at = time.monotonic() + _TRY_AGAIN_AFTER
            try:
                self._read()
            except (hvac.exceptions.VaultError, requests.RequestException):
                if time.time() >= float(self._secret.get("exp", 0)):
                    raise  # Vault is away, and what we have has ended; until then it serves
        return {"Authorization": self._secret["access_token"]}

    def refused(self) -> bool:
        """LivePerson answered 401 with errorCode 40102; whether to try once more, with another token."""
        before = self._secret.get("fingerprint")
        self._read()
        return bool(self._secret["fingerprint"] != before)  # the same token: wait and alert, do not loop

    def _read(self) -> None:
        answer = self._vault.secrets.kv.v2.read_secret_version(
            f"{_PREFIX}/{self._account}", mount_point=_MOUNT, raise_on_deleted_version=True
        )
        self._secret, self._read_at = answer["data"]["data"], time.monotonic() + _READ_EVERY


if __name__ == "__main__":
    client = hvac.Client(verify=os.environ.get("VAULT_CACERT") or True)  # VAULT_ADDR, VAULT_TOKEN: from the environment
    print(AppJWT(os.environ["ACCOUNT"], client).headers()["Authorization"])
