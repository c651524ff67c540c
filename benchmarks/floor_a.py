"""Floor A: the cost of a refresh with plain hvac and requests, one persistent session per thread, no checks."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import hvac
import requests

ADDRESS, TOKEN, CA = (os.environ[name] for name in ("BENCH_VAULT", "BENCH_TOKEN", "BENCH_VAULT_CA"))
HOST, SENTINEL_CA = os.environ["BENCH_SENTINEL"], os.environ["BENCH_SENTINEL_CA"]
_own = threading.local()


def refresh(name: str) -> bool:
    if not hasattr(_own, "vault"):
        session = requests.Session()
        session.verify = CA
        _own.vault = hvac.Client(url=ADDRESS, token=TOKEN, session=session).secrets.kv.v2
        _own.http = requests.Session()
        _own.http.verify = SENTINEL_CA
    stored = _own.vault.read_secret_version(f"liveperson/tokens/{name}", raise_on_deleted_version=True)["data"]
    account = _own.vault.read_secret_version(f"liveperson/accounts/{name}", raise_on_deleted_version=True)["data"][
        "data"
    ]
    answer = _own.http.post(
        f"https://{HOST}/sentinel/api/account/{name}/app/token",
        params={"v": "1.0", "grant_type": "client_credentials"},
        data={"client_id": account["client_id"], "client_secret": account["client_secret"]},
        timeout=10,
    )
    data = {**stored["data"], "access_token": answer.json()["access_token"]}
    _own.vault.create_or_update_secret(f"liveperson/tokens/{name}", data, cas=stored["metadata"]["version"])
    return True


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(refresh, json.load(sys.stdin)))
    sys.stdout.write(f"{done}\n")
