"""Each mode by the installed command: its output, and every exit status that it can have.

Runs that do not affect each other are made in parallel, once; each test checks one of them.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hvac.exceptions import InvalidPath

from sandbox.liveperson import Seen
from sandbox.world import POLICIES
from tests.integration.calls import by_token, operate, run_concurrently
from tests.integration.processes import Done, Scene, scene

WORKER, AUDITOR = ((POLICIES / f"{name}.hcl").read_text() for name in ("worker", "auditor"))

Changes = Mapping[str, str | None]

AWAY = {"APPJWT_VAULT_ADDRESS": "https://127.0.0.1:1"}
WRONG = {"APPJWT_REFRESH_ATT": "0.5"}


class Prefixes:
    """One Vault with accounts and tokens below several prefixes, each with a separate login."""

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
}


@pytest.fixture(scope="module")
def ended(made: Scene, bad: Changes) -> dict[tuple[str, int], Done]:
    """Run each mode where all is well, with an account that fails, with a wrong setting, and without a Vault."""
    circumstances: dict[int, Changes] = {0: {}, 1: bad, 2: WRONG, 3: AWAY}
    runs = {
        (mode, status): partial(made.call, *flags, changes=changes)
        for mode, flags in MODES.items()
        for status, changes in circumstances.items()
    }
    runs["refresh", 1] = partial(made.call, "--refresh", "le402", changes=bad)
    return dict(zip(runs, run_concurrently(*runs.values()), strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_each_mode_ends_with_each_status(mode: str, status: int, ended: dict[tuple[str, int], Done]) -> None:
    done = ended[mode, status]
    assert done.status == status, done
    if status == 0:
        assert done.err == ""
    if status == 2:
        fault = "APPJWT_REFRESH_ATT: there is no such setting; did you mean APPJWT_REFRESH_AT?"
        assert (done.out, done.err) == ("", f"appjwt-worker: {fault}\n")
    if status == 3:
        assert "127.0.0.1:1: connection refused" in (done.out if mode == "check" else done.err)
        assert mode == "check" or (done.out, "appjwt-worker: Vault cannot be used: " in done.err) == ("", True)


def test_the_daemon_ends_with_2_for_wrong_settings_and_else_with_0(made: Scene) -> None:
    daemon = made.daemon(AWAY)
    assert made.call(changes=WRONG).status == 2
    daemon.wait_for("vault.unavailable")
    daemon.stop()  # asserts the 0


def test_a_vault_that_is_sealed_or_stopped_is_3_in_every_mode(tmp_path: Path) -> None:
    with scene(tmp_path / "scene") as made:
        made.openbao.client.sys.seal()
        modes = (["--status"], ["--check"], ["--refresh", "a"], ["--refresh-all"])
        sealed = run_concurrently(*(partial(made.call, *mode) for mode in modes))
        made.openbao.kill()
        stopped = made.call("--status")
    assert [done.status for done in (*sealed, stopped)] == [3, 3, 3, 3, 3]
    assert re.search(r"vault +FAILED +status 503.*\(it is sealed\)", sealed[1].out)
    assert all("sealed" in done.err for done in (sealed[0], *sealed[2:])), sealed
    assert "connection refused" in stopped.err


# --status


def test_status_as_json_is_as_promised_and_needs_no_more_than_the_auditors_policy(made: Scene) -> None:
    done = made.call("--status", "--output", "json", changes=by_token(made, "auditor"))
    assert (done.status, done.err) == (0, "")
    assert set(done.document) == {"accounts"}
    assert {line["account"] for line in done.document["accounts"]} == {"le400", "le401"}
    for line in done.document["accounts"]:
        token = made.openbao.get_token(line["account"]) or {}
        left = line.pop("remaining")
        assert isinstance(left, float)
        assert 3300 < left <= 3600
        end, planned = (datetime.fromisoformat(token[key]) for key in ("expires_at", "refresh_at"))
        assert line.pop("margin") == pytest.approx(left / (end - planned).total_seconds(), abs=0.01)
        assert line == {
            "account": line["account"],
            "state": "ok",
            **{key: token[key] for key in ("issued_at", "expires_at", "refresh_at", "fingerprint")},
            "last_error": None,
            "failing_since": None,
        }


def test_status_as_a_table_says_the_same_and_sums_up(prefixes: Prefixes) -> None:
    changes = prefixes.add("shown", le405={}, le406={})
    made = prefixes.scene
    assert made.call("--refresh", "le405", changes=changes).status == 0
    done = made.call("--status", changes=changes)
    token = made.openbao.get_token("le405", prefix="shown/tokens") or {}
    titles, missing, well, empty, summary = done.out.splitlines()
    assert re.split("  +", titles) == [
        *(
            "ACCOUNT",
            "STATE",
            "REMAINING",
            "MARGIN",
            "ISSUED AT",
            "EXPIRES AT",
            "REFRESH AT",
            "FINGERPRINT",
            "LAST ERROR",
        )
    ]
    assert re.split("  +", missing) == ["le406", "failing", "0:00:00", "0.00", "-", "-", "-", "-", "there is no token"]
    name, state, left, margin, *rest = re.split("  +", well)
    assert (name, state, left[:4]) == ("le405", "ok", "0:59")
    assert 1 < float(margin) < 2.3  # 1 at the planned refresh, which may be soon, since two tokens are spread out
    assert rest == [*(token[key] for key in ("issued_at", "expires_at", "refresh_at", "fingerprint")), "-"]
    assert (empty, summary) == ("", "2 accounts, 1 without a live token")


# --check


def test_check_as_json_is_as_promised_and_asks_sentinel_for_nothing(prefixes: Prefixes) -> None:
    changes, made = prefixes.add("quiet", le407={"enable": False}, le408={"enabled": False}), prefixes.scene
    done = made.call("--check", "--output", "json", changes=changes)
    host = made.liveperson.hosts["va"]
    assert (done.status, set(done.document), done.err) == (0, {"checks"}, "")
    lines = done.document["checks"]
    assert all(line.keys() == {"check", "ok", "detail", "remedy"} for line in lines)
    assert [(line["check"], line["ok"], line["remedy"]) for line in lines] == [
        (check, True, None)
        for check in (
            "vault",
            "login",
            "accounts.mount",
            "tokens.mount",
            "tokens.mount delete_version_after",
            "right secret/metadata/quiet/accounts/*",
            "right secret/data/quiet/accounts/*",
            "right secret/data/quiet/tokens/*",
            "right secret/metadata/quiet/tokens/*",
            "right auth/token/lookup-self",
            "right auth/token/renew-self",
            "clock vault",
            "accounts",
            "account le407",
            "account le408",
            f"sentinel {host}",
            f"clock {host}",
            "tokens",
        )
    ]
    details = {line["check"]: line["detail"] for line in lines}
    assert details["account le407"] == f"valid; host {host}; client_secret not verified; not read: enable"
    assert details["account le408"] == "disabled"
    assert not [seen for seen in made.liveperson.seen if (seen.service, seen.account_id) == ("sentinel", "le407")]


def test_a_check_that_fails_gives_the_very_command_that_mends_it(prefixes: Prefixes) -> None:
    made, odd = prefixes.scene, {"sentinel_domain": "example.com"}
    changes = prefixes.add("mended", le409={"client_id": ""}, le410={}, le411=odd, le414={"client_secret": "echoed\n"})
    made.openbao.client.secrets.kv.v2.create_or_update_secret("mended/tokens/le410", {"a": "b"})

    def failures() -> dict[str, dict[str, Any]]:
        done = made.call("--check", "--output", "json", changes=changes)
        found = {line["check"]: line for line in done.document["checks"] if not line["ok"]}
        assert done.status == bool(found)
        return found

    found = failures()
    assert {check: line["detail"] for check, line in found.items()} == {
        "account le409": "client_id: missing or empty",
        "account le410": "secret/mended/tokens/le410 holds a secret that is not ours",
        "account le411": "sentinel_domain of the account is example.com, which sentinel.allowed_hosts does not allow",
        "account le414": "client_secret: holds a space, a line break or a character outside ASCII",
    }
    remedy = "vault kv patch -mount=secret mended/accounts/le414 client_secret=@FILE"
    assert found["account le414"]["remedy"] == remedy, "a secret is not for the shell's history"
    assert found["account le409"]["remedy"] == "vault kv patch -mount=secret mended/accounts/le409 client_id=VALUE"
    assert "sentinel.allowed_hosts" in found["account le411"]["remedy"]
    operate(made, found["account le409"]["remedy"].replace("VALUE", "75588e18-0213-4e33-8174-883acac7e3c4"))
    operate(made, found["account le410"]["remedy"])
    assert failures().keys() == {"account le411", "account le414"}


def test_check_as_a_table_says_what_failed_why_and_what_mends_it(bad: Changes, made: Scene) -> None:
    out = made.call("--check", changes=bad).out
    lines = [re.split("  +", line) for line in out.splitlines()]
    assert lines[0] == ["CHECK", "OK", "DETAIL", "REMEDY"]
    remedy = "vault kv patch -mount=secret bad/accounts/le402 client_id=VALUE"
    assert ["account le402", "FAILED", "client_id: missing or empty", remedy] in lines
    assert lines[-1] == ["17 passed, 1 failed"]


# --refresh with --dry-run and --expires-within


def asked(made: Scene) -> list[Seen]:
    """Return the requests to LivePerson about accounts; reading its clock is allowed."""
    return [seen for seen in made.liveperson.seen if seen.service != "clock"]


def refreshed(done: Done) -> list[tuple[object, ...]]:
    return [(row["account"], row["outcome"], row["reason"], row["error"]) for row in done.document["accounts"]]


def test_a_dry_run_says_which_and_why_and_does_nothing(prefixes: Prefixes) -> None:
    made = prefixes.scene
    changes = prefixes.add("dry", le412={}, le413={}, le414={"client_id": ""}, le415={"enabled": False})
    assert made.call("--refresh", "le412", changes=changes).status == 0
    requests = len(asked(made))
    done = made.call("--refresh-all", "--dry-run", "--output", "json", changes=changes)
    assert (done.status, refreshed(done)) == (
        1,
        [
            ("le412", "skipped", "manual", None),
            ("le413", "skipped", "missing", None),
            ("le414", "failed", "manual", "client_id: missing or empty"),
            ("le415", "skipped", None, "the account is disabled"),
        ],
    )
    assert (done.document["refreshed"], done.document["failed"], done.document["skipped"]) == (0, 1, 3)
    assert len(asked(made)) == requests
    assert made.openbao.get_token("le413", prefix="dry/tokens") is None
    table = made.call("--refresh", "le412", "le413", "--dry-run", changes=changes).out
    assert table.splitlines()[-1] == "dry run: 2 would be refreshed, for the reason given; 0 could not be"


def test_expires_within_leaves_alone_what_lives_longer(prefixes: Prefixes) -> None:
    changes, made = prefixes.add("less", le416={}, le417={}), prefixes.scene
    assert made.call("--refresh", "le416", changes=changes).status == 0
    first = made.openbao.get_token("le416", prefix="less/tokens")
    flags = ("--refresh-all", "--output", "json", "--expires-within")
    none = made.call(*flags, "0s", changes=changes)
    assert refreshed(none) == [("le416", "skipped", None, None), ("le417", "skipped", None, None)]
    some = made.call(*flags, "20m", changes=changes)
    assert refreshed(some) == [("le416", "skipped", None, None), ("le417", "refreshed", "manual", None)]
    assert made.openbao.get_token("le416", prefix="less/tokens") == first
    dry = made.call(*flags, "2h", "--dry-run", changes=changes)
    assert refreshed(dry) == [("le416", "skipped", "manual", None), ("le417", "skipped", "manual", None)]


def test_refresh_may_be_repeated_and_keeps_the_order_given(prefixes: Prefixes) -> None:
    changes = prefixes.add("order", le418={}, le419={}, le420={})
    done = prefixes.scene.call(
        "--refresh", "le420", "--refresh", "le418", "le419", "le420", "--output", "json", changes=changes
    )
    assert [row["account"] for row in done.document["accounts"]] == ["le420", "le418", "le419"]
    assert done.document["refreshed"] == 3


# Flags and names


def test_a_misspelled_flag_is_told_with_the_nearest(made: Scene) -> None:
    done = made.call("--chek")
    assert (done.status, done.out) == (2, "")
    sentence = "unrecognized arguments: --chek; did you mean --check?"
    assert done.err.splitlines()[-1] == f"appjwt-worker: error: {sentence}"


def test_an_unknown_account_is_told_with_the_nearest(made: Scene) -> None:
    refresh = partial(made.call, "--output", "json", "--refresh")
    near, far = run_concurrently(partial(refresh, "le40"), partial(refresh, "brand/eu"))
    assert (near.status, far.status) == (1, 1)
    missing = "there is no secret at secret/liveperson/accounts/"
    assert near.document["accounts"][0]["error"] in {f"{missing}le40; did you mean le40{n}?" for n in (0, 1)}
    assert far.document["accounts"][0]["error"] == f"{missing}brand/eu"
    for name in ("le40", "brand/eu"):
        with pytest.raises(InvalidPath):  # a typing error leaves nothing behind
            made.openbao.client.secrets.kv.v2.read_secret_metadata(f"liveperson/tokens/{name}")


# Where settings come from


@pytest.fixture
def config(made: Scene, tmp_path: Path) -> Path:
    """Write all of the settings to a file."""
    values: dict[str, object] = dict(made.settings)
    values["APPJWT_SENTINEL_ALLOWED_HOSTS"] = made.settings["APPJWT_SENTINEL_ALLOWED_HOSTS"].split(",")
    keys = {name: name.removeprefix("APPJWT_").lower().replace("_", ".", 1) for name in values}
    file = tmp_path / "worker.toml"
    file.write_text("".join(f"{keys[name]} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


def test_a_file_may_hold_all_settings_and_be_named_by_flag_or_variable(config: Path, made: Scene) -> None:
    nothing: dict[str, str | None] = dict.fromkeys(made.settings)
    done = run_concurrently(
        partial(made.call, "--status", "--config", str(config), changes=nothing),
        partial(made.call, "--status", changes={**nothing, "APPJWT_CONFIG": str(config)}),
    )
    assert [each.status for each in done] == [0, 0]


@pytest.mark.tool("unshare")
def test_without_a_word_the_file_in_etc_is_taken(config: Path, made: Scene) -> None:
    """It runs in a mount namespace with an empty /etc: nothing of this machine is touched."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    script = 'mount -t tmpfs none /etc && install -D "$0" /etc/appjwt-worker/worker.toml && exec "$@"'
    behind = ["unshare", "-rm", "sh", "-c", script, str(config)]
    done = made.call("--status", behind=behind, changes=dict.fromkeys(made.settings))
    assert done.status == 0, done.err
    assert "le400" in done.out


# What is not signed as demanded


def test_only_a_token_that_verifies_is_published(prefixes: Prefixes, tmp_path: Path) -> None:
    changes, made = dict(prefixes.add("signed", le421={})), prefixes.scene
    liveperson, pem = made.liveperson, tmp_path / "key.pem"
    pem.write_text(liveperson.public_key_pem)

    def refresh(verify: str, version: str = "1.0") -> tuple[str, dict[str, str]]:
        """Return the outcome, and what is stored then; each token expires later than the one before."""
        liveperson.token_life += timedelta(seconds=1)
        settings = {"APPJWT_SENTINEL_VERIFY_SIGNATURE": verify, "APPJWT_SENTINEL_API_VERSION": version}
        done = made.call("--refresh", "le421", "--output", "json", changes=changes | settings)
        (row,) = done.document["accounts"]
        assert done.status == (row["outcome"] == "failed")
        return str(row["error"] or row["outcome"]), made.openbao.get_token("le421", prefix="signed/tokens") or {}

    assert refresh(str(pem))[0] == "refreshed"
    assert refresh("jwks", "2.0")[0] == "refreshed"
    before = refresh("jwks")[1]
    liveperson.rotate_key(publish=False)
    by_pem, by_jwks = refresh(str(pem)), refresh("jwks")
    assert by_pem == (f"signature: expected one by a key in {pem}, got another", before)
    assert by_jwks[0].startswith(f"signature: expected one by a key that {liveperson.hosts['va']} publishes, got kid ")
    assert by_jwks[1] == before
    outcome, after = refresh("off")
    assert (outcome, after["fingerprint"] != before["fingerprint"]) == ("refreshed", True)
