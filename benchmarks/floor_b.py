"""Floor B: the same calls by urllib3 alone."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import urllib3

ADDRESS, TOKEN, CA = (os.environ[name] for name in ("BENCH_VAULT", "BENCH_TOKEN", "BENCH_VAULT_CA"))
HOST, SENTINEL_CA = os.environ["BENCH_SENTINEL"], os.environ["BENCH_SENTINEL_CA"]
HEADERS = {"X-Vault-Token": TOKEN}
vault = urllib3.connection_from_url(ADDRESS, maxsize=8, ca_certs=CA)
sentinel = urllib3.connection_from_url(f"https://{HOST}", maxsize=8, ca_certs=SENTINEL_CA)


def read(path: str) -> Any:
    return json.loads(vault.request("GET", f"/v1/secret/data/{path}", headers=HEADERS).data)["data"]


def refresh(name: str) -> bool:
    stored, account = read(f"liveperson/tokens/{name}"), read(f"liveperson/accounts/{name}")["data"]
    answer = sentinel.request(
        "POST",
        f"/sentinel/api/account/{name}/app/token?v=1.0&grant_type=client_credentials",
        body=urlencode({"client_id": account["client_id"], "client_secret": account["client_secret"]}),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    data = {**stored["data"], "access_token": json.loads(answer.data)["access_token"]}
    body = json.dumps({"options": {"cas": stored["metadata"]["version"]}, "data": data})
    written = vault.request("POST", f"/v1/secret/data/liveperson/tokens/{name}", body=body, headers=HEADERS)
    return written.status == 200  # noqa: PLR2004


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(refresh, json.load(sys.stdin)))
    sys.stdout.write(f"{done}\n")
