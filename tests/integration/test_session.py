"""The way to a real Vault: a login that is renewed and replaced, and errors that are all of one kind."""

import contextlib
import itertools
import json
import math
import os
import re
import secrets
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from sandbox.openbao import OpenBao
from sandbox.world import POLICIES
from tests.builders import app_jwt
from tests.integration.calls import account_store, token_store
from tests.integration.servers import Answering, http, request
from worker import net
from worker.core.errors import Kind, RefreshError
from worker.schedule.boottime import boottime
from worker.vault.errors import VaultError
from worker.vault.login import AppRoleLogin, Login, TokenFileLogin, TokenLogin
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use
from worker.vault.session import VaultSession

ROLE = "appjwt-worker"
WORKER = (POLICIES / "worker.hcl").read_text()
ASKED = 3
"""Requests that `ask` makes: two lists, and one about the mount, which we count as a use though Vault does not."""
SHORT = timedelta(seconds=1)
"""For a Vault that does not answer."""

Logs = list[Any]


@pytest.fixture(scope="module")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("openbao"), audit=True) as openbao:
        openbao.policy(ROLE, WORKER)
        openbao.put_account("le81823118", {"client_id": "c"})
        yield openbao


@dataclass
class Vault:
    """A role of the worker's and its secret_id file at a real OpenBao, and sessions there."""

    openbao: OpenBao
    role_id: str
    secret_id_file: Path
    stack: ExitStack
    timeout: timedelta = timedelta(seconds=10)
    jumped: float = 0.0
    """Seconds that the sessions' clock is ahead."""

    @property
    def approle(self) -> AppRoleLogin:
        return AppRoleLogin("approle", self.role_id, self.secret_id_file)

    def session(self, login: Login | None = None, *, address: str | None = None) -> VaultSession:
        ca_cert = str(self.openbao.ca_file) if self.openbao.ca_file else None
        return VaultSession(
            address or self.openbao.address,
            login or self.approle,
            http=self.stack.enter_context(net.session(user_agent="test", ca_cert=ca_cert)),
            namespace=None,
            timeout=self.timeout,
            clock=lambda: boottime() + self.jumped,
        )

    def logins(self) -> list[str]:
        """Return the accessors of all live logins by our role."""
        ours = [each for each in self.openbao.living() if (each["meta"] or {}).get("role_name") == ROLE]
        return [each["accessor"] for each in ours]

    def revoke_all(self) -> None:
        for accessor in self.logins():
            self.openbao.client.auth.token.revoke_accessor(accessor)

    def set_role(self, ttl: str) -> None:
        self.openbao.approle(ROLE, [ROLE], token_ttl=ttl, token_max_ttl=ttl)

    def requests(self, path: str) -> int:
        """Count the requests for this path, by the audit log."""
        return sum(line["type"] == "request" and line["request"]["path"] == path for line in self._audited())

    def refused(self) -> list[str]:
        """Return the path of each request that Vault refused, by the audit log."""
        return [line["request"]["path"] for line in self._audited() if line["type"] == "response" and "error" in line]

    def _audited(self) -> list[dict[str, Any]]:
        return list(map(json.loads, self.openbao.audit_file.read_text().splitlines()))


@pytest.fixture
def vault(openbao: OpenBao, tmp_path: Path) -> Iterator[Vault]:
    role_id, secret_id = openbao.approle(ROLE, [ROLE])
    file = tmp_path / "secret_id"
    file.write_text(secret_id)
    with ExitStack() as stack:
        vault = Vault(openbao, role_id, file, stack)
        yield vault
        vault.revoke_all()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as logs:
        yield logs


def ask(session: VaultSession) -> list[str]:
    """Make the simplest call there is."""
    return sorted(account_store(session).names())


def failure(session: VaultSession) -> VaultError:
    with pytest.raises(VaultError) as caught:
        ask(session)
    return caught.value


def events(logs: Logs) -> list[str]:
    return [line["event"] for line in logs]


def causes(logs: Logs) -> list[str]:
    """Why each login was made."""
    return [line["cause"] for line in logs if line["event"] == "vault.login"]


@pytest.mark.parametrize("form", [str, lambda token: token[300:340], lambda token: token.encode().hex()])
def test_a_vault_that_repeats_the_token_it_was_sent_is_not_quoted(form: Callable[[str], str], vault: Vault) -> None:
    token = app_jwt()
    told = form(token.raw.get_secret_value())
    body = json.dumps({"errors": [f"cannot store {told}"]}).encode()
    with _Odd(Odd(body, status="500 Oops")) as server:
        session = vault.session(TokenLogin(SecretStr("s.any")), address=server.url)
        with pytest.raises(VaultError) as caught:
            session.call(
                Operation.WRITE_TOKEN,
                "tokens",
                "a",
                lambda client: client.secrets.kv.v2.create_or_update_secret(
                    "tokens/a", {"access_token": token.raw.get_secret_value()}
                ),
            )
        session.login.close()
    assert str(caught.value) == "write_token tokens/a: status 500, cannot store [redacted]"


def test_a_warning_that_quotes_what_was_sent_or_read_is_redacted(vault: Vault, logs: Logs) -> None:
    token, secret = f"hvs.{secrets.token_urlsafe(24)}", "q7m2x9k4c8v1b6n3z5"
    body = {"data": {"data": {"client_secret": secret}}, "warnings": [f"{token} reads {secret}", {"odd": secret}, None]}
    with _Odd(Odd(json.dumps(body).encode())) as server:
        session = vault.session(TokenLogin(SecretStr(token)), address=server.url)
        session.call(Operation.READ_ACCOUNT, "secret", "a", lambda client: client.adapter.get("/v1/secret/data/a"))
        session.login.close()
    said = [line["warning"] for line in logs if line["event"] == "vault.warning"]
    assert said == ["[redacted] reads [redacted]", "{'odd': '[redacted]'}", "None"]


def test_a_vault_that_warns_of_something_else_each_time_does_not_fill_the_log(vault: Vault, logs: Logs) -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefghijkl", repeat=2)]
    with _Odd(Odd(json.dumps({"data": {}, "warnings": words}).encode())) as server:
        session = vault.session(TokenLogin(SecretStr("s.any")), address=server.url)
        for _ in range(2):
            session.call(Operation.READ_ACCOUNT, "secret", "a", lambda client: client.adapter.get("/v1/a"))
        session.login.close()
    assert events(logs).count("vault.warning") == 100


# Logins


@pytest.mark.parametrize("told", ["s.one two", "s.one\ntwo", "", 7, None, ["s.one"]])
def test_a_login_whose_token_could_not_go_into_a_header_is_refused_and_not_quoted(told: object, vault: Vault) -> None:
    answer = {"auth": {"client_token": told, "lease_duration": 60, "renewable": True}}
    with _Odd(Odd(json.dumps(answer).encode())) as server:
        session = vault.session(address=server.url)
        assert str(failure(session)) == "approle login: the answer is not Vault's"
        session.login.close()


def test_an_approle_login_is_made_once_and_revoked_on_close(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    for _ in range(3):
        assert ask(session) == ["le81823118"]
    assert len(vault.logins()) == 1
    session.login.close()
    assert vault.logins() == []
    session.login.close()  # no harm in doing it twice
    (line,) = logs
    assert line == {
        "event": "vault.login",
        "log_level": "info",
        "method": "approle",
        "cause": "start",
        "expires_in": 1200,
    }


def test_a_login_is_renewed_at_half_of_its_life(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    for vault.jumped in (590, 610, 1190, 1220):
        ask(session)
    assert events(logs) == ["vault.login", "vault.renewed", "vault.renewed"]
    assert len(vault.logins()) == 1


def test_a_login_whose_renewals_are_used_up_is_made_anew_before_it_ends(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    vault.set_role(ttl="5m")  # a renewal gives no more than this
    vault.jumped = 610
    ask(session)
    assert causes(logs) == ["start", "ending"]
    assert logs[-1]["expires_in"] == 300
    assert len(vault.logins()) == 1, "the one before is revoked, though it would have lived on for a while"


def test_what_vault_warns_of_is_reported_once_though_its_figures_differ(vault: Vault, logs: Logs) -> None:
    vault.set_role(ttl="20m")  # which is the most, so that each renewal gives a little less
    session = vault.session()
    for vault.jumped in (0, 610, 1220):
        ask(session)
        time.sleep(1.1)
    assert events(logs) == ["vault.login", "vault.warning", "vault.renewed", "vault.renewed"]
    assert (logs[1]["log_level"], logs[1]["path"]) == ("warning", "auth/token/renew-self")
    assert re.fullmatch(r'TTL of "[\w]+" exceeded the effective max_ttl of "19m.*', logs[1]["warning"])


def test_a_login_whose_renewal_is_refused_is_made_anew(vault: Vault, logs: Logs) -> None:
    vault.openbao.policy("no-renewal", re.sub(r'path "auth/token/renew-self" {.*?}\n', "", WORKER, flags=re.DOTALL))
    vault.openbao.approle(ROLE, ["no-renewal"])
    session = vault.session()
    ask(session)
    vault.jumped = 610
    ask(session)
    assert causes(logs) == ["start", "renewal_refused"]
    assert len(vault.logins()) == 1


def test_a_login_that_ran_out_unused_is_made_anew(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    vault.jumped = 1201
    ask(session)
    assert events(logs) == ["vault.login", "vault.login"]
    assert causes(logs) == ["start", "ending"]


def test_a_revoked_login_is_noticed_and_made_anew_once(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    vault.revoke_all()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: ask(session), range(24))) == [["le81823118"]] * 24
    assert events(logs) == ["vault.login", "vault.login"]
    assert causes(logs) == ["start", "revoked"]
    assert len(vault.logins()) == 1


def test_a_403_by_policy_is_told_and_no_reason_to_log_in_again(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    accounts = account_store(session, "elsewhere")
    for _ in range(2):
        with pytest.raises(VaultError, match=r"^list secret/elsewhere: status 403, permission denied$") as caught:
            accounts.names()
        assert (caught.value.kind, caught.value.status) == (Kind.PERMANENT, 403)
    assert events(logs) == ["vault.login"]


# Logins that may be used a few times only


def test_a_login_of_25_uses_is_replaced_before_they_run_out_whatever_is_in_flight(vault: Vault, logs: Logs) -> None:
    vault.openbao.approle(ROLE, [ROLE], token_num_uses=25)
    session, together = vault.session(), threading.Barrier(32)
    before = vault.refused()

    def often(_: int) -> int:
        together.wait()
        return sum(ask(session) == ["le81823118"] for _ in range(25))

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(often, range(32))) == 800
    assert vault.refused() == before, "no request came to a login that had ended"
    assert set(events(logs)) == {"vault.login"}
    assert set(causes(logs)[1:]) == {"ending"}
    assert len(logs) == math.ceil(800 * ASKED / 22)
    assert len(vault.logins()) == 1, "those used up were revoked when their last request had its answer"
    session.login.close()
    assert vault.logins() == []


def test_renewing_uses_a_login_up_too(vault: Vault, logs: Logs) -> None:
    vault.openbao.approle(ROLE, [ROLE], token_num_uses=25, token_ttl="20m", token_max_ttl="10h")
    session = vault.session()
    before = vault.refused()
    for turn in range(40):
        vault.jumped = 610 * turn
        assert ask(session)
    assert vault.refused() == before
    assert set(causes(logs)[1:]) == {"ending"}
    assert events(logs).count("vault.renewed") > 30


def test_a_login_of_fewer_than_20_uses_is_refused_in_words_and_leaves_none_behind(vault: Vault) -> None:
    vault.openbao.approle(ROLE, [ROLE], token_num_uses=19)
    session = vault.session()
    for vault.jumped in (0, 1, 29):
        assert str(failure(session)) == (
            "approle login: it may be used 19 times, and at least 20 are needed "
            "(set token_num_uses = 0 on its role, or make the token without -use-limit)"
        )
    assert vault.logins() == []
    vault.openbao.approle(ROLE, [ROLE], token_num_uses=20)
    vault.jumped = 31
    assert ask(session)


def test_a_given_token_of_few_uses_serves_until_they_are_nearly_gone_and_is_then_refused_in_words(vault: Vault) -> None:
    token = vault.openbao.token([ROLE], num_uses=30)
    session = vault.session(TokenLogin(SecretStr(token)))
    for _ in range((30 - 1 - 3) // ASKED):  # looking it up was one use, and three are spared
        assert ask(session)
    assert "it may be used 11 times, and at least 20 are needed" in str(failure(session))


def test_a_login_that_somebody_else_used_up_is_noticed_and_made_anew(vault: Vault, logs: Logs) -> None:
    vault.openbao.approle(ROLE, [ROLE], token_num_uses=25)
    session = vault.session()
    ask(session)
    (accessor,) = vault.logins()
    session.login.call(lambda client: [client.auth.token.lookup_self() for _ in range(25 - (ASKED - 1))])
    assert accessor not in vault.logins()
    assert ask(session)
    assert causes(logs) == ["start", "revoked"]


@pytest.mark.parametrize(("looked_up", "logins"), [("403 Forbidden", 2), ("200 OK", 1)])
def test_where_the_last_uses_of_a_login_meet_a_500_is_told_from_any_other_by_looking_it_up(
    looked_up: str, logins: int, vault: Vault, logs: Logs
) -> None:
    """Of 960 requests by a dozen threads to OpenBao, by tokens of 25 uses, 20 got this answer."""
    with _UsedUp(looked_up) as server:
        session = vault.session(address=server.url)
        error = failure(session)
        session.login.close()
    assert (error.status, error.kind) == (500, Kind.TRANSIENT)
    assert events(logs).count("vault.login") == logins


def test_many_threads_share_one_login(vault: Vault, logs: Logs) -> None:
    session, together = vault.session(), threading.Barrier(24)

    def at_once(_: int) -> list[str]:
        together.wait()
        return ask(session)

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(at_once, range(24))) == [["le81823118"]] * 24
    assert events(logs) == ["vault.login"]
    assert len(vault.logins()) == 1


def test_many_threads_share_one_refused_login(vault: Vault) -> None:
    vault.secret_id_file.write_text("wrong")
    session, together = vault.session(), threading.Barrier(24)
    before = vault.requests("auth/approle/login")

    def at_once(_: int) -> str:
        together.wait()
        return str(failure(session))

    with ThreadPoolExecutor(24) as pool:
        texts = set(pool.map(at_once, range(24)))
    hint = "see vault.role_id and vault.secret_id_file: the secret_id may have expired or be used up"
    assert texts == {f"approle login: status 400, invalid role or secret ID ({hint})"}
    # a thread that arrives while one is under way takes its answer; a few may arrive after it
    assert vault.requests("auth/approle/login") - before < 6


def test_a_rotated_secret_id_is_read_at_the_next_login(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    roles = vault.openbao.client.auth.approle
    roles.destroy_secret_id(ROLE, vault.secret_id_file.read_text())
    vault.revoke_all()
    refused = failure(session)
    assert "invalid role or secret ID" in str(refused)
    assert (refused.kind, refused.reported_kind) == (Kind.TRANSIENT, Kind.PERMANENT)
    vault.secret_id_file.write_text(roles.generate_secret_id(ROLE)["data"]["secret_id"] + "\n")
    assert ask(session)
    assert events(logs).count("vault.login") == 2


def test_without_a_login_its_expiry_is_in_the_past_so_that_an_alert_sees_it(vault: Vault) -> None:
    session = vault.session()
    assert session.login.expiry <= boottime()
    ask(session)
    assert session.login.expiry > boottime() + 600
    vault.openbao.client.auth.approle.destroy_secret_id(ROLE, vault.secret_id_file.read_text())
    vault.revoke_all()
    failure(session)
    assert boottime() - 60 < session.login.expiry <= boottime()


def test_a_refused_login_is_not_tried_so_often_that_vault_locks_the_role_out(vault: Vault) -> None:
    """It does so for 15 minutes after five refusals; the right secret_id would be refused, too."""
    secret_id = vault.secret_id_file.read_text()
    vault.secret_id_file.write_text("wrong")
    session, before = vault.session(), vault.requests("auth/approle/login")
    for vault.jumped in (0, 1, 29, 31, 60, 900, 940):
        assert "status 400, invalid role or secret ID" in str(failure(session))
    assert vault.requests("auth/approle/login") - before == 3
    vault.secret_id_file.write_text(secret_id)
    assert ask(session)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, r"cannot be read: no such file or directory"),
        (lambda file: file.write_text(" \n"), r"is empty"),
        (lambda file: file.write_text(f"{file.read_text()}\n{file.read_text()}"), r"must contain a single secret_id"),
        (lambda file: file.write_bytes(b"\xff\xfe"), r"must contain a single secret_id"),
        (lambda file: (file.unlink(), file.mkdir()), r"cannot be read: is a directory"),
    ],
    ids=["missing", "empty", "two lines", "no text", "a folder"],
)
def test_an_unusable_secret_id_file_is_named_and_not_shown(
    spoil: Callable[[Path], object], said: str, vault: Vault
) -> None:
    secret_id = vault.secret_id_file.read_text()
    spoil(vault.secret_id_file)
    text = str(failure(vault.session()))
    assert re.search(rf"^approle login: vault.secret_id_file {re.escape(str(vault.secret_id_file))} {said}$", text)
    assert secret_id not in text


def test_a_secret_id_may_end_with_a_line_break(vault: Vault) -> None:
    vault.secret_id_file.write_text(f"{vault.secret_id_file.read_text()}\r\n")
    assert ask(vault.session())


def test_a_given_token_is_renewed_and_not_revoked(vault: Vault, logs: Logs) -> None:
    token = vault.openbao.token([ROLE], ttl="20m")
    session = vault.session(TokenLogin(SecretStr(token)))
    assert ask(session)
    vault.jumped = 610
    assert ask(session)
    session.login.close()
    assert vault.openbao.client.auth.token.lookup(token)["data"]["policies"] == [ROLE]
    assert events(logs) == ["vault.login", "vault.renewed"]


def test_a_given_token_that_is_wrong_is_told(vault: Vault) -> None:
    error = failure(vault.session(TokenLogin(SecretStr("s.wrong"))))
    assert re.search(r"^token login: status 403, permission denied \(see vault.token or vault.token_file: ", str(error))
    assert (error.kind, error.reported_kind) == (Kind.TRANSIENT, Kind.TRANSIENT)


def test_a_token_file_is_read_again_when_its_token_ended(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "sink"
    file.write_text(vault.openbao.token([ROLE]))
    session = vault.session(TokenFileLogin(file))
    assert ask(session)
    vault.openbao.client.auth.token.revoke(file.read_text())
    assert "token login: status 403" in str(failure(session))
    file.write_text(vault.openbao.token([ROLE]) + "\n")
    assert ask(session)
    session.login.close()
    assert vault.openbao.client.auth.token.lookup(file.read_text().strip())


def test_a_token_file_is_read_again_when_it_changed_though_its_token_lives(
    vault: Vault, logs: Logs, tmp_path: Path
) -> None:
    file = tmp_path / "sink"
    first = vault.openbao.token([ROLE], ttl="20m")
    file.write_text(first)
    session = vault.session(TokenFileLogin(file))
    assert ask(session)
    file.write_text(vault.openbao.token([ROLE], ttl="40m"))
    for _ in range(3):
        assert ask(session)
    assert [round(line["expires_in"], -1) for line in logs] == [1200, 2400]
    vault.openbao.client.auth.token.revoke(first)
    assert ask(session)
    file.unlink()
    assert ask(session)
    assert events(logs) == ["vault.login", "vault.login"]


@pytest.mark.parametrize("content", ["", "two words", "s.unknown"])
def test_a_token_file_that_is_spoilt_hurts_nobody_while_the_token_read_before_lives(
    content: str, vault: Vault, logs: Logs, tmp_path: Path
) -> None:
    file = tmp_path / "sink"
    file.write_text(vault.openbao.token([ROLE]))
    session = vault.session(TokenFileLogin(file))
    assert ask(session)
    file.write_text(content)
    for _ in range(3):
        assert ask(session)
    assert events(logs)[:2] == ["vault.login", "vault.unavailable"]
    assert (events(logs).count("vault.login"), events(logs).count("vault.unavailable")) == (1, 1)


def test_a_token_file_that_is_replaced_by_one_of_the_same_age_and_size_is_noticed(
    vault: Vault, logs: Logs, tmp_path: Path
) -> None:
    """Replacing by `cp -p` or a mounted volume does that."""
    file, new = tmp_path / "sink", tmp_path / "new"
    file.write_text(vault.openbao.token([ROLE]))
    session = vault.session(TokenFileLogin(file))
    assert ask(session)
    new.write_text(vault.openbao.token([ROLE]))
    os.utime(new, ns=(0, file.stat().st_mtime_ns))
    assert new.stat().st_size == file.stat().st_size
    new.replace(file)
    assert ask(session)
    assert causes(logs) == ["start", "credentials_changed"]


def test_who_asks_while_a_spoilt_token_file_is_tried_goes_on_with_the_token_read_before(
    vault: Vault, tmp_path: Path
) -> None:
    file = tmp_path / "sink"
    file.write_text(vault.openbao.token([ROLE]))
    session = vault.session(TokenFileLogin(file))
    before = len(vault.refused())
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            asking = [pool.submit(ask, session) for _ in range(20)]
            file.write_text(f"s.wrong{number}")
            assert [each.result() for each in asking] == [["le81823118"]] * 20
    assert set(vault.refused()[before:]) == {"auth/token/lookup-self"}, "nothing else was asked by a spoilt token"


def test_a_secret_id_that_is_replaced_while_the_login_runs_is_taken_at_once(vault: Vault, logs: Logs) -> None:
    secret_id = vault.secret_id_file.read_text()
    vault.secret_id_file.write_text("wrong")

    class Rotated(AppRoleLogin):
        def __call__(self, client: hvac.Client) -> dict[str, Any]:
            try:
                return super().__call__(client)
            finally:
                vault.secret_id_file.write_text(secret_id)

    session = vault.session(Rotated("approle", vault.role_id, vault.secret_id_file))
    assert "invalid role or secret ID" in str(failure(session))
    assert ask(session), "though a refused login is not tried again for 30 s"
    assert causes(logs) == ["start"]


def test_a_token_file_s_token_is_not_renewed(vault: Vault, logs: Logs, tmp_path: Path) -> None:
    file = tmp_path / "sink"
    file.write_text(vault.openbao.token([ROLE], ttl="20m"))
    session = vault.session(TokenFileLogin(file))
    ask(session)
    vault.jumped = 610
    ask(session)
    assert "vault.renewed" not in events(logs)


# Trouble


def test_a_vault_that_is_away_is_said_once_and_its_return_once(vault: Vault, logs: Logs) -> None:
    vault.timeout = SHORT
    session = vault.session()
    ask(session)
    with vault.openbao.frozen():
        for _ in range(3):
            error = failure(session)
            assert (error.kind, error.status) == (Kind.TRANSIENT, None)
            assert re.fullmatch(
                r"list sys/internal/ui/mounts/secret: 127.0.0.1:\d+: no complete answer within 1 s", str(error)
            )
    for _ in range(2):
        assert ask(session)
    assert events(logs) == ["vault.login", "vault.unavailable", "vault.recovered"]
    assert logs[2]["duration"] > 0.9


def test_a_sealed_vault_is_transient_and_comes_back(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    key = re.search(r"Unseal Key: (\S+)", (vault.openbao.folder / "bao.log").read_text())
    assert key
    vault.openbao.client.sys.seal()
    try:
        for _ in range(2):
            error = failure(session)
            assert (error.kind, error.status) == (Kind.TRANSIENT, 503)
    finally:
        vault.openbao.client.sys.submit_unseal_key(key[1])
    assert ask(session)
    assert events(logs) == ["vault.login", "vault.unavailable", "vault.recovered"]


def test_one_outage_is_said_once_though_a_renewal_and_a_write_fall_into_it(vault: Vault, logs: Logs) -> None:
    vault.timeout = SHORT
    session = vault.session()
    accounts = account_store(session)
    accounts.names()
    with vault.openbao.frozen():
        vault.jumped = 610
        assert "no complete answer" in str(failure(session))
    vault.jumped = 620
    for _ in range(3):
        ask(session)
    assert events(logs) == ["vault.login", "vault.unavailable", "vault.renewed", "vault.recovered"]


def test_a_write_that_failed_is_not_over_when_a_read_works(logs: Logs) -> None:
    """Without a leader a standby still answers reads: the state would flip with every attempt."""
    outage = Outage("https://vault", boottime)
    down = VaultError("status 500", status=500)
    for _ in range(3):
        outage.record_failure(Use.WRITE, down)
        outage.record_success(Use.READ)
    assert events(logs) == ["vault.unavailable"]
    outage.record_failure(Use.READ, down)
    outage.record_success(Use.WRITE)
    assert events(logs) == ["vault.unavailable", "vault.recovered"]


def test_a_renewal_that_fails_is_noticed_by_nobody_while_the_login_lives(vault: Vault, logs: Logs) -> None:
    vault.timeout = SHORT
    session = vault.session()
    ask(session)
    with vault.openbao.frozen():
        vault.jumped = 610
        assert session.login.keep_alive() > boottime() + vault.jumped
    for _ in range(3):
        assert ask(session)  # which proves nothing about the login
    assert events(logs) == ["vault.login", "vault.unavailable"]
    vault.jumped = 620
    assert ask(session)
    assert events(logs)[2:] == ["vault.renewed", "vault.recovered"]


def test_a_stopped_vault_refuses_and_closing_the_session_is_quick_and_quiet(tmp_path: Path) -> None:
    with OpenBao(tmp_path, tls=False) as openbao, ExitStack() as stack:  # each start makes a new CA
        file = tmp_path / "sink"
        file.write_text(openbao.root_token)
        vault = Vault(openbao, "", file, stack)
        session = vault.session(TokenFileLogin(file))
        assert ask(session) == []
        openbao.kill()
        error = failure(session)
        assert (error.kind, error.status) == (Kind.TRANSIENT, None)
        assert re.fullmatch(r"list \S+: 127.0.0.1:\d+: connection (refused|lost)", str(error))
        openbao.start()
        assert ask(session) == []
        openbao.kill()
        session.login.close()


def test_a_redirect_is_not_followed_and_a_write_not_taken_for_done(vault: Vault) -> None:
    """In hvac the 307 of a standby is no error: the write is lost silently."""
    with Answering(http()) as elsewhere:
        to = http(b"", f"Location: {elsewhere.url}/v1/secret", status="307 Temporary Redirect")
        with Answering(to) as standby:
            session = vault.session(TokenLogin(SecretStr("s.any")), address=standby.url)
            assert "a redirect (307) to another path was not followed" in str(failure(session))
        assert elsewhere.connections == 0


# Whatever is at Vault's address

DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Odd:
    """An answer to the login, and one to all that follows."""

    body: bytes
    headers: tuple[str, ...] = ()
    status: str = "200 OK"
    login: bytes = field(default=b'{"data": {"ttl": 600, "renewable": true}}')


ODD: dict[str, Odd] = {
    "a page": Odd(b"<html>Welcome</html>", ("Content-Type: text/html",)),
    "an error page": Odd(b"<html>Sorry</html>", ("Content-Type: text/html",), status="502 Bad Gateway"),
    "nothing": Odd(b""),
    "a list": Odd(b"[1]"),
    "a string": Odd(b'"ok"'),
    "null": Odd(b"null"),
    "data null": Odd(b'{"data": null}'),
    "data a list": Odd(b'{"data": [1]}'),
    "keys null": Odd(b'{"data": {"keys": null, "data": null, "metadata": null, "version": null}}'),
    "keys numbers": Odd(b'{"data": {"keys": [1, null, {}], "data": [1], "metadata": [1], "version": "x"}}'),
    "metadata odd": Odd(b'{"data": {"data": {}, "metadata": {"version": "x", "custom_metadata": 1}}}'),
    "deep": Odd(DEEP),
    "errors odd": Odd(b'{"errors": {"a": 1}}', status="400 Bad Request"),
    "errors a number": Odd(b'{"errors": 7}', status="500 Oops"),
    "error deep": Odd(DEEP, status="500 Oops"),
    "no UTF-8": Odd(b'{"data": "\xff\xfe"}'),
    "a bad charset": Odd(b"{}", ("Content-Type: application/json; charset=undefined",)),
    "an endless number": Odd(b'{"data": ' + b"9" * 9999 + b"}"),
    "login a page": Odd(b"{}", login=b"<html></html>"),
    "login nothing": Odd(b"{}", login=b"{}"),
    "login null": Odd(b"{}", login=b'{"data": null}'),
    "login odd": Odd(b"{}", login=b'{"data": {"ttl": "soon", "renewable": "?"}}'),
    "login deep": Odd(b"{}", login=DEEP),
    "a bad date": Odd(b"{}", ("Date: Fri, 31 Dec 9999 23:59:59 GMT",)),
}


class _Odd(Answering):
    """Answers the look-up of a token with one thing, and all else with another."""

    def __init__(self, odd: Odd) -> None:
        super().__init__(http(odd.login))
        self._then = http(odd.body, *odd.headers, status=odd.status)

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            asked = await request(reader)
            writer.write(self._bytes if b"lookup-self" in asked else self._then)


class _UsedUp(Answering):
    """Logs in for 25 uses, answers all that follows by 500, and the look-up of the login with this status."""

    def __init__(self, looked_up: str) -> None:
        super().__init__(
            http(b'{"errors": ["1 error occurred: * internal error"]}', status="500 Internal Server Error")
        )
        login = {"client_token": "s.any", "lease_duration": 600, "renewable": True, "num_uses": 25}
        self._login = http(json.dumps({"auth": login}).encode())
        self._looked_up = http(b'{"errors": ["permission denied"]}', status=looked_up)

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            path = (await request(reader)).split()[1]
            special = {b"/v1/auth/approle/login": self._login, b"/v1/auth/token/lookup-self": self._looked_up}
            writer.write(special.get(path, self._bytes))


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_answer_of_vault_is_taken_or_refused_and_never_a_bug(kind: str, vault: Vault) -> None:
    with _Odd(ODD[kind]) as server:
        session = vault.session(TokenLogin(SecretStr("s.any")), address=server.url)
        accounts = account_store(session, "accounts")
        tokens = token_store(session, "tokens")
        for call in (accounts.names, lambda: accounts.read("a"), lambda: tokens.read("a")):
            with contextlib.suppress(RefreshError):  # nothing else may come
                call()
        session.login.close()


class _Listing(Answering):
    """A KV v1 whose LIST has so many names."""

    def __init__(self, names: int) -> None:
        super().__init__(http(b'{"data": {"ttl": 600, "renewable": true, "type": "kv", "options": null}}'))
        keys = [f"le{number:06}" for number in range(names)]
        self._list = http(json.dumps({"data": {"keys": keys}}).encode())

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            asked = await request(reader)
            writer.write(self._list if asked.startswith(b"LIST") or b"list=true" in asked else self._bytes)


@pytest.mark.parametrize(("there", "taken", "told"), [(100_000, 100_000, 0), (100_001, 100_000, 1)])
def test_more_accounts_than_100000_are_told_and_no_more_of_them_taken_in(
    there: int, taken: int, told: int, vault: Vault, logs: Logs
) -> None:
    with _Listing(there) as server:
        session = vault.session(TokenLogin(SecretStr("s.any")), address=server.url)
        store = account_store(session, "accounts")
        names = [store.names() for _ in range(2)]
        session.login.close()
    assert {len(each) for each in names} == {taken}
    said = [line for line in logs if line["event"] == "accounts.synced"]
    assert len(said) == len(store.unlisted_folders) == told, "once, however often they are listed"
    assert all("more than 100000 accounts" in line["error"] for line in said)
