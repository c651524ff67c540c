"""Effects of a mount's or a path's metadata on tokens: the installed command against a real OpenBao."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Fault
from tests.integration.calls import operate
from tests.integration.processes import Done, Scene, eventually, scene

ACCOUNT = "le81823118"
PATH = f"liveperson/tokens/{ACCOUNT}"
MARK = {"managed_by": "appjwt-worker"}
CHECK = "tokens.mount delete_version_after"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "scene") as made:
        made.add_account(ACCOUNT)
        yield made


def row(done: Done) -> dict[str, Any]:
    """Return the report of --refresh or --status on the only account."""
    (found,) = done.document["accounts"]
    return dict(found)


def status(made: Scene) -> dict[str, Any]:
    return row(made.call("--status", "--output", "json"))


def refresh(made: Scene) -> dict[str, Any]:
    return row(made.call("--refresh", ACCOUNT, "--output", "json"))


def check(made: Scene) -> tuple[int, dict[str, Any]]:
    """Return the exit status of --check, and its line about the tokens' mount."""
    done = made.call("--check", "--output", "json")
    (line,) = [line for line in done.document["checks"] if line["check"] == CHECK]
    return done.status, line


# A Vault that deletes what it is given


def by_mount(made: Scene, after: str) -> None:
    made.openbao.client.adapter.request("post", "/v1/secret/config", json={"delete_version_after": after})


def by_path(made: Scene, after: str) -> None:
    made.openbao.client.secrets.kv.v2.update_metadata(PATH, delete_version_after=after)


def test_tokens_that_their_mount_deletes_early_fail_with_a_command_that_helps_and_make_no_hot_loop(
    made: Scene,
) -> None:
    by_mount(made, "3s")
    daemon = made.daemon()
    daemon.wait_for("token.refreshed")
    warning = daemon.wait_for("vault.warning")
    assert (warning["account"], warning["level"]) == (ACCOUNT, "warning")
    account_status = eventually(lambda: found if (found := status(made))["state"] == "failing" else None)
    assert account_status["last_error"] == f"vault: {warning['warning']}"
    assert account_status["failing_since"]

    eventually(lambda: made.openbao.get_token(ACCOUNT) is None)
    assert status(made)["remaining"] == 0
    assert made.liveperson.mints(ACCOUNT) == 1

    command = account_status["last_error"].partition("; for the whole mount: ")[2]
    status_code, line = check(made)
    assert (status_code, line["ok"], line["remedy"]) == (1, False, command)
    assert line["detail"] == "3 s: Vault deletes tokens before they expire"
    operate(made, command)

    refreshed = daemon.wait_for("token.refreshed", count=2)
    assert refreshed["reason"] == "missing"
    daemon.wait_for("account.recovered")
    assert eventually(lambda: found if (found := status(made))["state"] == "ok" else None)["last_error"] is None
    assert made.versions(ACCOUNT)["2"]["deletion_time"] == ""
    assert check(made)[0] == 0
    daemon.stop()
    assert not daemon.events("token.repaired")
    assert not daemon.events("refresh.failed")
    assert len(daemon.events("vault.warning")) == 1


def test_tokens_that_their_path_deletes_early_fail_with_a_command_that_helps(made: Scene) -> None:
    by_path(made, "3s")
    assert refresh(made)["outcome"] == "refreshed"
    account_status = status(made)
    assert (account_status["state"], check(made)[0]) == ("failing", 0)
    operate(
        made, account_status["last_error"].partition(", before it expires: ")[2].partition("; for the whole mount: ")[0]
    )
    eventually(lambda: made.openbao.get_token(ACCOUNT) is None)
    assert refresh(made)["outcome"] == "refreshed"
    assert (status(made)["state"], made.versions(ACCOUNT)["2"]["deletion_time"]) == ("ok", "")
    assert made.custom_metadata(ACCOUNT) == {**MARK, "state": "ok"}, "the command left the mark alone"


def test_tokens_that_vault_deletes_after_they_expired_are_well_with_one_warning_per_account(tmp_path: Path) -> None:
    with scene(tmp_path / "scene", life=4) as made:
        by_mount(made, "2h")
        for name in (ACCOUNT, "12345678"):
            made.add_account(name)
        daemon = made.daemon()
        for name in (ACCOUNT, "12345678"):
            daemon.wait_for("token.refreshed", count=3, account=name)
        daemon.stop()
        warnings = daemon.events("vault.warning")
        assert sorted(line["account"] for line in warnings) == sorted((ACCOUNT, "12345678"))
        assert all(
            "and some agents take it for deleted until then: vault kv metadata" in line["warning"] for line in warnings
        )
        assert made.custom_metadata(ACCOUNT) == MARK, "no state but ok"
        status_code, line = check(made)
        assert (status_code, line["ok"], line["remedy"]) == (0, True, None)
        assert line["detail"].startswith("7200 s; warning: ")


# A mount or a path that demands check-and-set of metadata writes, too


@pytest.mark.parametrize("where", ["mount", "path"])
def test_where_metadata_demands_check_and_set_tokens_are_written_and_marked_and_states_told(
    made: Scene, where: str
) -> None:
    adapter, strict = made.openbao.client.adapter, {"metadata_cas_required": True}
    if where == "mount":
        adapter.request("post", "/v1/secret/config", json=strict)
    else:
        adapter.request("post", f"/v1/secret/metadata/{PATH}", json={**strict, "metadata_cas": 0})
    with made.liveperson.faults.on(Fault(status=401), service="sentinel"):
        assert refresh(made)["outcome"] == "failed"
    account_status = status(made)
    assert (account_status["state"], account_status["last_error"].split(":")[0]) == ("failing", "sentinel")
    done = made.call("--refresh", ACCOUNT, "--output", "json")
    assert (row(done)["outcome"], done.err) == ("refreshed", "")
    assert made.custom_metadata(ACCOUNT) == {**MARK, "state": "ok"}
    answer = made.openbao.client.secrets.kv.v2.read_secret_metadata(PATH)["data"]
    assert (answer["max_versions"], answer["current_metadata_version"] > 0) == (5, True)


# A path that is taken back


def test_a_path_is_taken_back_from_a_disabled_account_as_the_page_says(made: Scene) -> None:
    daemon = made.daemon()
    daemon.wait_for("token.refreshed")
    operate(made, f"vault kv patch -mount=secret liveperson/accounts/{ACCOUNT} enabled=false")
    assert refresh(made)["error"] == "the account is disabled"
    operate(made, f"vault kv metadata patch -mount=secret -remove-custom-metadata=managed_by {PATH}")
    operate(made, f"vault kv put -mount=secret {PATH} password=theirs")
    for _ in range(2):
        assert refresh(made)["outcome"] == "skipped"
    assert made.openbao.get_token(ACCOUNT) == {"password": "theirs"}
    assert made.custom_metadata(ACCOUNT) == {}
    daemon.stop()
    assert not daemon.events("refresh.failed")
