"""Limit C: the same calls by http.client, with nothing around them."""

import json
import os
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

ADDRESS, TOKEN, CA = (os.environ[name] for name in ("BENCH_VAULT", "BENCH_TOKEN", "BENCH_VAULT_CA"))
HOST, SENTINEL_CA = os.environ["BENCH_SENTINEL"], os.environ["BENCH_SENTINEL_CA"]
HEADERS = {"X-Vault-Token": TOKEN}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_vaults, _sentinels = ssl.create_default_context(cafile=CA), ssl.create_default_context(cafile=SENTINEL_CA)
_own = threading.local()


def ask(connection: HTTPSConnection, *request: Any) -> Any:
    connection.request(*request)
    return json.loads(connection.getresponse().read())


def refresh(name: str) -> bool:
    if not hasattr(_own, "vault"):
        _own.vault = HTTPSConnection(str(urlsplit(ADDRESS).netloc), context=_vaults)
        _own.sentinel = HTTPSConnection(HOST, context=_sentinels)
    stored = ask(_own.vault, "GET", f"/v1/secret/data/liveperson/tokens/{name}", None, HEADERS)["data"]
    account = ask(_own.vault, "GET", f"/v1/secret/data/liveperson/accounts/{name}", None, HEADERS)["data"]["data"]
    form = urlencode({"client_id": account["client_id"], "client_secret": account["client_secret"]})
    path = f"/sentinel/api/account/{name}/app/token?v=1.0&grant_type=client_credentials"
    token = ask(_own.sentinel, "POST", path, form, FORM)["access_token"]
    body = {"options": {"cas": stored["metadata"]["version"]}, "data": {**stored["data"], "access_token": token}}
    path = f"/v1/secret/data/liveperson/tokens/{name}"
    return "version" in ask(_own.vault, "POST", path, json.dumps(body), HEADERS)["data"]


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(refresh, json.load(sys.stdin)))
    sys.stdout.write(f"{done}\n")
