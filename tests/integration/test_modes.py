"""Each mode by the installed command: what it prints, and every exit status that it may end with.

The runs that change nothing for each other are made side by side, once; each test looks at its own.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sandbox
from tests.integration.calls import by_token, operate, side_by_side
from tests.integration.processes import Done, Scene, scene

POLICIES = Path(sandbox.__file__).parent.parent / "config" / "policies"
WORKER, AUDITOR = ((POLICIES / f"{name}.hcl").read_text() for name in ("worker", "auditor"))

Changes = Mapping[str, str | None]

AWAY = {"APPJWT_VAULT_ADDRESS": "https://127.0.0.1:1"}
WRONG = {"APPJWT_REFRESH_ATT": "0.5"}


class Prefixes:
    """One Vault with accounts and tokens below several prefixes, each with a login of its own."""

    def __init__(self, made: Scene) -> None:
        self.scene = made

    def add(self, prefix: str, **accounts: Mapping[str, object]) -> Changes:
        """Accounts known to LivePerson with these fields of their secrets changed; the settings that lead there."""
        for name, fields in accounts.items():
            app = self.scene.liveperson.add_account(name)
            self.scene.secrets.append(app.client_secret)
            secret = {"client_id": app.client_id, "client_secret": app.client_secret, **fields}
            self.scene.openbao.put_account(name, secret, prefix=f"{prefix}/accounts")
        self.scene.openbao.policy(prefix, WORKER.replace("liveperson/", f"{prefix}/"))
        settings = {"APPJWT_ACCOUNTS_PREFIX": f"{prefix}/accounts", "APPJWT_TOKENS_PREFIX": f"{prefix}/tokens"}
        return by_token(self.scene, prefix, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("modes")) as made:
        for name in ("le400", "le401"):
            made.add_account(name)
        assert made.call("--refresh-all").status == 0
        made.openbao.policy("auditor", AUDITOR)
        yield made


@pytest.fixture(scope="module")
def prefixes(made: Scene) -> Prefixes:
    return Prefixes(made)


@pytest.fixture(scope="module")
def bad(prefixes: Prefixes) -> Changes:
    """Settings that lead to an account without client_id, and to one that is well."""
    return prefixes.add("bad", le402={"client_id": ""}, le403={})


# Exit statuses

MODES = {
    "refresh": ["--refresh", "le400"],
    "refresh-all": ["--refresh-all"],
    "status": ["--status"],
    "check": ["--check"],
    "dry-run": ["--refresh-all", "--dry-run"],
    "if-less-than": ["--refresh-all", "--if-less-than", "20m"],
}


@pytest.fixture(scope="module")
def ended(made: Scene, bad: Changes) -> dict[tuple[str, int], Done]:
    """Each mode where all is well, with an account that fails, with a wrong setting, and without a Vault."""
    made.add_account("le404")
    assert made.call("--refresh", "le404").status == 0
    circumstances: dict[int, Changes] = {0: {}, 1: bad, 2: WRONG, 3: AWAY}
    runs = {
        (mode, status): partial(made.call, *MODES[mode], changes=circumstances[status])
        for mode in MODES
        for status in circumstances
    }
    runs[("refresh", 1)] = partial(made.call, "--refresh", "le402", changes=bad)
    return dict(zip(runs, side_by_side(*runs.values()), strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_each_mode_ends_with_each_status(mode: str, status: int, ended: dict[tuple[str, int], Done]) -> None:
    done = ended[mode, status]
    assert done.status == status, done
    if status == 0:
        assert done.err == ""
    if status == 2:
        assert (done.out, done.err) == (
            "",
            "appjwt-worker: APPJWT_REFRESH_ATT: there is no such setting; did you mean APPJWT_REFRESH_AT?\n",
        )
    if status == 3 and mode != "check":
        assert done.out == ""
        assert "appjwt-worker: Vault cannot be used: " in done.err
        assert "connection refused" in done.err


def test_the_daemon_ends_with_2_for_wrong_settings_and_else_with_0(made: Scene) -> None:
    daemon = made.daemon(AWAY)
    assert made.call(changes=WRONG).status == 2
    daemon.wait_for("vault.unavailable")
    daemon.stop()  # asserts the 0


def test_a_vault_that_is_sealed_or_stopped_is_3_in_every_mode(tmp_path: Path) -> None:
    with scene(tmp_path / "scene") as made:
        made.openbao.client.sys.seal()
        modes = (["--status"], ["--check"], ["--refresh", "a"], ["--refresh-all"])
        sealed = side_by_side(*(partial(made.call, *mode) for mode in modes))
        made.openbao.stop()
        # it takes its CA file along, which a setting names
        stopped = made.call("--status", changes={"APPJWT_VAULT_CA_CERT": None})
    assert [done.status for done in (*sealed, stopped)] == [3, 3, 3, 3, 3]
    assert "sealed" in sealed[0].err
    assert re.search(r"vault +FAILED +status 503.*\(it is sealed\)", sealed[1].out)
    assert "connection refused" in stopped.err


# --status


def test_status_as_json_is_as_promised(ended: dict[tuple[str, int], Done], made: Scene) -> None:
    lines = ended["status", 0].document["accounts"] if False else made.call("--status", "--output", "json").document
    assert set(lines) == {"accounts"}
    by_name = {line["account"]: line for line in lines["accounts"]}
    token = made.openbao.get_token("le401") or {}
    line = by_name["le401"]
    left = line.pop("life_left")
    assert isinstance(left, float)
    assert 3400 < left <= 3600
    assert line == {
        "account": "le401",
        "state": "ok",
        **{key: token[key] for key in ("issued_at", "expires_at", "refresh_at", "fingerprint")},
        "last_error": None,
        "failing_since": None,
    }
