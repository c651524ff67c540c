"""The installed command, as users run it: against a real OpenBao with the worker's policy, and a local LivePerson."""

import base64
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox.faults import DROP, Fault
from tests.integration.calls import on_a_terminal
from tests.integration.processes import Daemon, Done, Reader, Scene, eventually, faketime, scene
from tests.integration.scenarios import Scenarios, Settled, begun, for_each
from tests.integration.servers import Answering, http

ACCOUNT = "le81823118"
TEN = [ACCOUNT, "12345678", *(f"le4427019{n}" for n in range(8))]
LEAST_SHARE = 0.2
"""Of a life of some seconds, that a loaded machine leaves a reader: of an hour it is 0.4, as the simulation proves."""


# Slow scenarios. They run in parallel, begun before the first test and checked by the last ones.


def a_reader_does_not_notice_that_sentinel_is_off_for_5_s(folder: Path, settled: Settled) -> None:
    with scene(folder, life=20) as world:
        accounts = TEN[:3]
        for account in accounts:
            world.add_account(account)
        daemon = world.daemon()
        daemon.wait_for("token.refreshed", count=3)
        minted = max(daemon.events("token.refreshed"), key=lambda line: str(line["refresh_at"]))
        with Reader(world, accounts) as reader:
            settled()
            due, ends = (datetime.fromisoformat(minted[key]) for key in ("refresh_at", "expires_at"))
            time.sleep(max(0, (due - timedelta(seconds=2) - datetime.now(UTC)).total_seconds()))
            with world.liveperson.faults.on(Fault(status=503)):
                time.sleep(5)
            renewed = daemon.wait_for("token.refreshed", account=minted["account"], count=2, within=10)
        assert daemon.events("refresh.failed", status=503)
        assert reader.failures == []
        assert reader.least_share > 0.1
        assert renewed["remaining_at_refresh"] < (ends - due).total_seconds() - 1  # late, and in time
        daemon.stop()


def sigterm_ends_it_while_a_request_hangs(folder: Path, settled: Settled) -> None:
    with scene(folder) as world:
        world.add_account(ACCOUNT)
        world.liveperson.faults.set(Fault(hang=True))
        daemon = world.daemon({"APPJWT_SENTINEL_TIMEOUT": "60s"})
        eventually(lambda: any(seen.service == "sentinel" for seen in world.liveperson.seen))
        assert len(world.logins()) == 1
        settled()
        assert daemon.stop(signal.SIGTERM) < 20
        assert daemon.events("worker.stopped")
        assert world.logins() == []


def sigint_ends_it_while_sentinel_and_vault_hang(folder: Path, settled: Settled) -> None:
    with scene(folder) as world:
        world.add_account(ACCOUNT)
        world.liveperson.faults.set(Fault(hang=True))
        daemon = world.daemon({"APPJWT_SENTINEL_TIMEOUT": "60s", "APPJWT_VAULT_TIMEOUT": "60s"})
        eventually(lambda: any(seen.service == "sentinel" for seen in world.liveperson.seen))
        settled()
        with world.openbao.frozen():
            assert daemon.stop(signal.SIGINT) < 20


def vault_is_down_at_the_start_and_comes_and_the_probes_tell_so(folder: Path, settled: Settled) -> None:
    with scene(folder, vault_tls=False) as world:  # with TLS each start makes a new CA
        world.openbao.stop()
        # a dev server forgets its logins when it stops, but not its root token
        root = {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": world.openbao.root_token}
        daemon = world.daemon({**root, "APPJWT_HTTP_LISTEN": "127.0.0.1:0"})
        daemon.wait_for("vault.unavailable")
        settled()
        time.sleep(2)
        assert daemon.process.poll() is None
        assert (daemon.probe("/livez"), daemon.probe("/readyz")) == (200, 503)
        assert len(daemon.events("vault.unavailable")) == 1
        world.openbao.start()
        world.add_account(ACCOUNT)
        daemon.wait_for("vault.recovered")
        daemon.wait_for("token.refreshed", account=ACCOUNT)
        daemon.wait_for("worker.ready")
        assert eventually(lambda: daemon.probe("/readyz") == 200)
        world.openbao.stop()
        assert (daemon.probe("/livez"), daemon.probe("/readyz")) == (200, 200), "once ready it stays so"
        daemon.stop()


def an_account_in_trouble_hurts_no_other(folder: Path, settled: Settled) -> None:
    with scene(folder, life=12) as world:
        good = TEN[:2]
        for account in [*good, "hanging", "refused"]:
            world.add_account(account)
        world.openbao.put_account("wrong", {"client_id": "some", "client_secret": "other"})
        world.openbao.put_account("incomplete", {"client_id": "some"})
        world.openbao.put_account("elsewhere", {"client_id": "s", "client_secret": "o", "sentinel_domain": "a.invalid"})
        world.liveperson.faults.set(Fault(hang=True), account="hanging")
        world.liveperson.faults.set(Fault(claims={"azp": "somebody else"}), account="refused")
        daemon = world.daemon({"APPJWT_SENTINEL_TIMEOUT": "4s", "APPJWT_SENTINEL_MAX_IN_FLIGHT": "2"})
        for account in good:
            daemon.wait_for("token.refreshed", account=account)
        settled()
        with Reader(world, good) as reader:
            for account in good:
                daemon.wait_for("token.refreshed", account=account, count=3)
        assert reader.failures == []
        assert reader.least_share > LEAST_SHARE
        for account, stage in {
            "hanging": "sentinel",
            "refused": "claims",
            "wrong": "domain",
            "incomplete": "credentials",
            "elsewhere": "domain",
        }.items():
            daemon.wait_for("refresh.failed", account=account, stage=stage)
        daemon.stop()


def accounts_come_and_go(folder: Path, settled: Settled) -> None:
    with scene(folder) as world:
        world.add_account(ACCOUNT)
        daemon = world.daemon()
        daemon.wait_for("worker.ready")
        settled()
        world.add_account("le44270190/connector-a", "lo")
        daemon.wait_for("account.added", account="le44270190/connector-a")
        daemon.wait_for("token.refreshed", account="le44270190/connector-a")
        world.openbao.client.secrets.kv.v2.delete_metadata_and_all_versions(f"liveperson/accounts/{ACCOUNT}")
        daemon.wait_for("account.removed", account=ACCOUNT)
        assert world.openbao.get_token(ACCOUNT)  # it remains valid until its expiry
        world.add_account(ACCOUNT)
        daemon.wait_for("account.added", account=ACCOUNT)
        daemon.stop()


def a_manual_refresh_is_taken_up_by_the_daemon(folder: Path, settled: Settled) -> None:
    with scene(folder, life=24) as world:
        world.add_account(ACCOUNT)
        # not by the daemon: it spreads the refreshes of its first tokens, by the name of the machine
        assert world.call("--refresh", ACCOUNT).status == 0
        daemon = world.daemon()
        daemon.wait_for("token.adopted")
        settled()
        time.sleep(1)  # a token of the same second would expire no later
        (line,) = world.call("--refresh", ACCOUNT, "--output", "json").document["accounts"]
        assert (line["outcome"], line["vault_version"]) == ("refreshed", 2)
        assert (world.liveperson.mints(), len(world.versions(ACCOUNT))) == (2, 2)
        # at its planned refresh it reads the newer one and plans from that
        adopted = daemon.wait_for("token.adopted", count=2)
        assert adopted["fingerprint"] == line["fingerprint"]
        assert world.liveperson.mints() == 2
        refreshed = daemon.wait_for("token.refreshed", reason="due")
        assert refreshed["vault_version"] == 3
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", refreshed["vault_request_id"])
        assert refreshed["remaining_at_refresh"] > LEAST_SHARE * 24
        daemon.stop()


def the_wall_clock_jumps_and_every_account_goes_on(folder: Path, settled: Settled) -> None:
    """Shift only the wall clock, for each daemon by a separate file, whose shift may change meanwhile."""
    jumps = {"back": ("+0d", "-1d"), "ahead": ("+0d", "+1d"), "late": ("-1d", "-1d"), "early": ("+1d", "+1d")}
    with scene(folder, life=10, vault_tls=False) as world:  # a dev server's certificate begins now
        daemons: dict[str, Daemon] = {}
        for name, (first, _) in jumps.items():
            for account in TEN[:2]:
                world.openbao.put_account(f"{name}/{account}", {**vars(world.liveperson.add_account(account))})
            daemons[name] = world.daemon(
                {
                    "APPJWT_ACCOUNTS_PREFIX": f"liveperson/accounts/{name}",
                    "APPJWT_TOKENS_PREFIX": f"liveperson/tokens/{name}",
                    **faketime(folder / name, first),
                }
            )
        for daemon in daemons.values():
            daemon.wait_for("token.refreshed", count=2)
        settled()
        accounts = [f"{name}/{account}" for name in jumps for account in TEN[:2]]
        with Reader(world, accounts) as reader:
            for name, (_, then) in jumps.items():
                (folder / name).write_text(then)
            for daemon in daemons.values():
                for account in TEN[:2]:
                    daemon.wait_for("token.refreshed", account=account, count=4)
        assert reader.failures == []
        assert reader.least_share > LEAST_SHARE
        for name, days in {"back": -1, "ahead": 1}.items():
            (skewed,) = daemons[name].events("clock.skewed")
            assert abs(skewed["skew"] - days * 86400) < 5
        for name, days in {"late": -1, "early": 1}.items():
            shown = datetime.fromisoformat(daemons[name].events()[-1]["timestamp"])
            assert abs((shown - datetime.now(UTC)).total_seconds() - days * 86400) < 60  # it was shifted indeed
        for daemon in daemons.values():
            assert not daemon.events("refresh.failed")
            daemon.stop()


SCENARIOS: Scenarios = {
    a_reader_does_not_notice_that_sentinel_is_off_for_5_s: None,
    sigterm_ends_it_while_a_request_hangs: None,
    sigint_ends_it_while_sentinel_and_vault_hang: None,
    vault_is_down_at_the_start_and_comes_and_the_probes_tell_so: None,
    an_account_in_trouble_hurts_no_other: None,
    accounts_come_and_go: None,
    a_manual_refresh_is_taken_up_by_the_daemon: None,
    the_wall_clock_jumps_and_every_account_goes_on: "faketime",
}


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    with begun(SCENARIOS, request, tmp_path_factory) as results:
        yield results


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "world") as world:
        yield world


# The daemon


@pytest.mark.usefixtures("scenarios")
def test_a_reader_finds_a_living_token_at_each_read(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    with scene(tmp_path / "world", life=10) as world:
        for number, account in enumerate(TEN):
            world.add_account(account, ("va", "lo")[number % 2])
        daemon = world.daemon()
        daemon.wait_for("token.refreshed", count=10)
        with Reader(world, TEN) as reader:
            for account in TEN:
                daemon.wait_for("token.refreshed", account=account, count=6, within=90)
        record_testsuite_property("least share of life seen", round(reader.least_share, 3))
        assert reader.failures == []
        assert reader.reads > 100
        assert reader.least_share > LEAST_SHARE
        for account in TEN:
            versions = world.versions(account)
            assert max(map(int, versions)) > 5
            assert len(versions) <= 5
        assert not daemon.events("refresh.failed")
        assert daemon.stop() < 10
        assert world.logins() == []


def test_it_ends_when_told_and_revokes_its_login_and_a_restart_mints_and_writes_nothing_that_is_fresh(
    world: Scene,
) -> None:
    for account in TEN[:3]:
        world.add_account(account)
    for expected, number in (("token.refreshed", signal.SIGTERM), ("token.adopted", signal.SIGINT)):
        daemon = world.daemon({"APPJWT_LOG_LEVEL": "debug"})
        daemon.wait_for(expected, count=3)
        daemon.wait_for("accounts.synced", count=3)
        assert len([line for line in daemon.events() if line["event"].startswith("token.")]) == 3
        assert len(world.logins()) == 1
        assert daemon.stop(number) < 10
        assert world.logins() == []
        assert daemon.events()[-1]["event"] == "worker.stopped"
        assert world.liveperson.mints() == 3
    assert [list(world.versions(account)) for account in TEN[:3]] == [["1"]] * 3


def test_a_daemon_whose_login_is_refused_stays_up_and_says_so(world: Scene) -> None:
    world.add_account(ACCOUNT)
    daemons = {
        "invalid role or secret ID": world.daemon({"APPJWT_VAULT_ROLE_ID": "wrong"}),
        "permission denied": world.daemon({"APPJWT_ACCOUNTS_PREFIX": "elsewhere"}),
    }
    for text, daemon in daemons.items():
        said = daemon.wait_for("vault.unavailable")
        assert text in said["error"]
        assert said["level"] == "error"
        assert daemon.process.poll() is None
        daemon.stop()


# A manual refresh


def test_the_json_of_a_refresh_is_as_promised(world: Scene) -> None:
    world.add_account(ACCOUNT)
    world.openbao.put_account("off", {"client_id": "c", "client_secret": "s", "enabled": "false"})
    done = world.call("--refresh", ACCOUNT, "--refresh", "off", "le8182311", "--output", "json")
    stored = world.openbao.get_token(ACCOUNT)
    assert stored
    good, off, unknown = done.document.pop("accounts")
    assert done.document | {"accounts": []} == {"accounts": [], "refreshed": 1, "failed": 1, "skipped": 1}
    assert good == {
        "account": ACCOUNT,
        "outcome": "refreshed",
        "reason": "manual",
        "expires_at": stored["expires_at"],
        "fingerprint": stored["fingerprint"],
        "vault_version": 1,
        "error": None,
        "claims": {name: stored[name] for name in ("kid", "alg", "typ", "aud", "azp", "scope", "iss")}
        | {name: int(stored[name]) for name in ("iat", "exp")},
    }
    assert off.keys() == unknown.keys() == good.keys()
    assert (off["account"], off["outcome"], unknown["account"], unknown["outcome"]) == (
        "off",
        "skipped",
        "le8182311",
        "failed",
    )
    assert unknown["error"].endswith(f"did you mean {ACCOUNT}?")
    assert done.status == 1


@pytest.mark.parametrize("mode", ["--refresh-all", "--status"])
def test_where_there_is_no_account_a_mode_says_so(mode: str, world: Scene) -> None:
    done = world.call(mode)
    assert (done.status, done.out) == (0, "there is no account below secret/liveperson/accounts\n")


def test_stdout_is_one_document_and_logs_are_on_stderr(world: Scene) -> None:
    world.add_account(ACCOUNT)
    with world.liveperson.faults.on(Fault(status=503)):
        done = world.call("--refresh", ACCOUNT, "--output", "json")
    assert done.document["accounts"][0]["error"] in done.err
    assert [json.loads(line)["event"] for line in done.err.splitlines()] == ["refresh.failed"]
    assert done.status == 1
    done = world.call("--refresh", ACCOUNT, "--output", "json", changes={"APPJWT_LOG_LEVEL": "info"})
    assert "token.refreshed" in [json.loads(line)["event"] for line in done.err.splitlines()]
    assert (done.status, done.document["refreshed"]) == (0, 1)


def test_a_table_for_people_says_the_same(world: Scene) -> None:
    world.add_account(ACCOUNT)
    done = world.call("--refresh", ACCOUNT, "unknown")
    head, good, unknown, _, summary = done.out.splitlines()
    assert head.split() == ["ACCOUNT", "OUTCOME", "REASON", "EXPIRES", "AT", "FINGERPRINT", "VAULT", "VERSION", "ERROR"]
    assert good.split()[:3] == [ACCOUNT, "refreshed", "manual"]
    assert "there is no secret at secret/liveperson/accounts/unknown" in unknown
    assert summary == "1 refreshed, 1 failed, 0 skipped"
    assert done.status == 1


def test_a_progress_bar_is_shown_on_a_terminal_and_only_there(world: Scene) -> None:
    for account in TEN:
        world.add_account(account)
    with world.liveperson.faults.on(Fault(delay=0.2)):
        status, out, progress = on_a_terminal(world, "--refresh-all", "--output", "json")
        assert (status, json.loads(out)["refreshed"]) == (0, 10)
        assert re.search(r"refreshing.*━.*\d+/10", progress)
        assert world.call("--refresh-all", "--output", "json").err == ""
        assert "refreshing" not in on_a_terminal(world, "--refresh", ACCOUNT)[2]
    assert re.search(r"reading.*━.*\d+/10", on_a_terminal(world, "--status", "--output", "json")[2])
    assert world.call("--status").err == ""


# Errors are reported


def _files(folder: Path) -> dict[str, str]:
    """Write files with invalid content."""
    contents = {"text": b"nonsense", "binary": bytes(range(256))}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: str(folder / name) for name in (*contents, "missing")}


def test_what_is_not_vault_or_no_file_of_a_ca_is_said_in_words(world: Scene, tmp_path: Path) -> None:
    """How each login is refused is in test_logins, and what is wrong with settings alone in the unit tests."""
    files = _files(tmp_path)
    liveperson_ca = str(world.liveperson.ca_file)
    with Answering(http(b"<html>Welcome</html>")) as page:
        cases: list[tuple[dict[str, str | None], int, str]] = [
            # Vault: another status than wrong settings, for it may come
            (
                {"VAULT_ADDRESS": world.liveperson.domain_api, "VAULT_CA_CERT": liveperson_ca},
                3,
                "the answer is not Vault's",
            ),
            ({"VAULT_ADDRESS": page.url}, 3, "the answer is not Vault's"),
            ({"VAULT_ADDRESS": world.openbao.address.replace("https", "http")}, 3, "speaks https|connection lost"),
            ({"VAULT_AUTH_METHOD": "token", "VAULT_TOKEN": "wr\nong"}, 3, "vault.token"),
            # settings
            ({"VAULT_CA_CERT": files["missing"]}, 2, r"vault.ca_cert \(APPJWT_VAULT_CA_CERT\): .* no such file"),
            ({"VAULT_CA_CERT": files["text"]}, 2, r"vault.ca_cert \(APPJWT_VAULT_CA_CERT\): .* holds no certificate"),
            ({"SENTINEL_CA_CERT": files["binary"]}, 2, "sentinel.ca_cert .*: .* holds no certificate"),
        ]

        def call(case: tuple[dict[str, str | None], int, str]) -> Done:
            return world.call("--refresh", ACCOUNT, changes={f"APPJWT_{key}": value for key, value in case[0].items()})

        with ThreadPoolExecutor(4) as pool:
            for (changes, status, said), done in zip(cases, pool.map(call, cases), strict=True):
                text = f"{changes}: {done.err}"
                assert done.status == status, text
                assert re.search(said, done.err), text
                assert all(line.startswith("appjwt-worker: ") for line in done.err.splitlines()), text
                assert done.out == ""


def test_a_name_that_is_none_is_an_account_that_fails(world: Scene) -> None:
    names = ["", "..", "../../sys/seal", "a b", "a?x=1", "/a", "a//b", "ü", "x" * 2000]
    done = world.call("--refresh", *names, "--output", "json")
    assert done.status == 1
    assert [line["outcome"] for line in done.document["accounts"]] == ["failed"] * len(names)
    assert [line["error"] for line in done.document["accounts"] if "an account's name holds" not in line["error"]] == []


ODD_SENTINEL: dict[str, tuple[Fault, str]] = {
    "page": (Fault(answer=b"<html>Welcome</html>"), "answers 200 without an access_token"),
    "bad-redirect": (Fault(redirect_to="https://[::1"), "a redirect .* was not followed"),
    "hang": (Fault(hang=True), "no complete answer within 4 s"),
    "echo": (Fault(echo_request=True), r"answers 400: cannot read: .*client_secret=\[redacted\]"),
    "empty-401": (Fault(status=401), "answers 401; check client_id and client_secret in "),
    "aud": (Fault(claims={"aud": "other"}), "aud: expected aud, got other"),
    "no-iss": (Fault(claims={"iss": DROP}), "a claim iss"),
    "hs256": (Fault(header={"alg": "HS256"}), "alg: expected RS256, got HS256"),
    "escape": (Fault(claims={"iss": "\x1b[2J\nx"}), "iss as printable text"),
}
ODD_DOMAIN: dict[str, tuple[Fault, str]] = {
    "d-page": (Fault(answer=b"<html></html>"), "Domain API"),
    "d-sly": (Fault(answer=b'{"baseURI": "evil.invalid/.liveperson.net"}'), "is no host name"),
    "d-bare": (Fault(answer=b'{"baseURI": "elsewhere"}'), "is elsewhere, which sentinel.allowed_hosts does not allow"),
    "d-404": (Fault(status=404), "answers 404"),
    "d-hang": (Fault(hang=True), "no complete answer within 4 s"),
}
"""Of each way to fail one or two: all of them are in test_wire, test_hostile, test_seen and ports/."""


def test_every_odd_answer_of_liveperson_is_said_in_words_and_hurts_no_other(world: Scene) -> None:
    odd = ODD_SENTINEL | ODD_DOMAIN
    for name in (ACCOUNT, *odd):
        world.add_account(name)
    for name, (fault, _) in odd.items():
        world.liveperson.faults.set(fault, account=name, service="domain" if name in ODD_DOMAIN else "sentinel")
    changes = {"APPJWT_SENTINEL_TIMEOUT": "4s", "APPJWT_SENTINEL_MAX_PER_SECOND": "1000"}
    done = world.call("--refresh-all", "--output", "json", changes=changes)
    lines = {line["account"]: line for line in done.document["accounts"]}
    assert lines.pop(ACCOUNT)["outcome"] == "refreshed"
    assert lines.keys() == odd.keys()
    for name, line in lines.items():
        assert (line["outcome"], line["vault_version"]) == ("failed", None), line
        assert re.search(odd[name][1], line["error"]), line
        assert line["error"].isprintable(), line
        assert len(line["error"]) < 400, line
        assert "internal error" not in line["error"], line
    assert (done.status, done.document["refreshed"], done.document["failed"]) == (1, 1, len(odd))


# Nothing leaks


def test_nothing_leaks_when_sentinel_repeats_what_it_was_sent(world: Scene, tmp_path: Path) -> None:
    """Sentinel uses each way of encoding, in full and in part; the scene searches all output at its exit."""
    token = world.openbao.token(["appjwt-worker"])
    sink = tmp_path / "sink"
    sink.write_text(token)
    world.secrets.append(token)
    credentials = world.add_account(ACCOUNT)
    secret = credentials.client_secret
    echoes = [
        Fault(echo_request=True),
        Fault(echo_request=True, status=500),
        Fault(status=401, body=json.dumps({"error": "no", "client_secret": secret}).encode()),
        Fault(status=400, body=f"the secret begins with {secret[:14]} and ends with {secret[-13:]}".encode()),
        Fault(status=500, body=b"Basic " + base64.b64encode(f"c:{secret}".encode())),
    ]
    debug: dict[str, str | None] = {
        "APPJWT_LOG_LEVEL": "debug",
        "APPJWT_VAULT_AUTH_METHOD": "token",
        "APPJWT_VAULT_TOKEN_FILE": str(sink),
    }
    for fault in echoes:
        with world.liveperson.faults.on(fault):
            done = world.call("--refresh", ACCOUNT, changes=debug)
            assert done.status == 1
            assert "redacted" in done.out
    minted = world.call("--refresh", ACCOUNT, changes=debug)
    assert minted.status == 0
    stored = world.openbao.get_token(ACCOUNT)
    assert stored
    echoed = {"error": f"had {stored['access_token']}", "vault": token}
    with world.liveperson.faults.on(Fault(status=500, body=json.dumps(echoed).encode())):
        daemon = world.daemon({**debug, "APPJWT_REFRESH_AT": "0.1"})
        daemon.wait_for("token.adopted")
        assert world.call("--refresh", ACCOUNT, changes=debug).status == 1
        daemon.stop()


# What was begun first


@for_each(SCENARIOS)
def test_in_the_long_run(name: str, scenarios: dict[str, Future[None]]) -> None:
    scenarios[name].result()
