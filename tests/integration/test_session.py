"""The way to a real Vault: a login that is kept alive and made anew, and errors that are all of one kind."""

import contextlib
import json
import re
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from sandbox.openbao import OpenBao
from sandbox.world import POLICIES
from tests.builders import app_jwt
from tests.integration.servers import Answering, http, request
from worker import net
from worker.core.errors import Kind, RefreshError
from worker.schedule.steady import steady
from worker.vault.accounts import VaultAccounts
from worker.vault.adapter import VaultError
from worker.vault.login import AppRoleLogin, Login, TokenFileLogin, TokenLogin
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use
from worker.vault.session import VaultSession
from worker.vault.tokens import VaultTokens

ROLE = "appjwt-worker"
SHORT = timedelta(seconds=1)
"""For a Vault that does not answer."""

Logs = list[Any]


@pytest.fixture(scope="module")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("openbao"), audit=True) as openbao:
        openbao.policy(ROLE, (POLICIES / "worker.hcl").read_text())
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
            clock=lambda: steady() + self.jumped,
        )

    def logins(self) -> list[str]:
        """The accessors of all logins by our role that live."""
        ours = [each for each in self.openbao.living() if (each["meta"] or {}).get("role_name") == ROLE]
        return [each["accessor"] for each in ours]

    def revoke_all(self) -> None:
        for accessor in self.logins():
            self.openbao.client.auth.token.revoke_accessor(accessor)

    def set_role(self, ttl: str) -> None:
        self.openbao.approle(ROLE, [ROLE], token_ttl=ttl, token_max_ttl=ttl)

    def requests(self, path: str) -> int:
        """How often this path was asked for, by the audit log."""
        lines = map(json.loads, self.openbao.audit_file.read_text().splitlines())
        return sum(line["type"] == "request" and line["request"]["path"] == path for line in lines)


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
    """The simplest call there is."""
    return sorted(VaultAccounts(session, mount="secret", prefix="liveperson/accounts").names())


def failure(session: VaultSession) -> VaultError:
    with pytest.raises(VaultError) as caught:
        ask(session)
    return caught.value


def events(logs: Logs) -> list[str]:
    return [line["event"] for line in logs]


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
                "tokens/a",
                lambda client: client.secrets.kv.v2.create_or_update_secret(
                    "tokens/a", {"access_token": token.raw.get_secret_value()}
                ),
            )
        session.login.close()
    assert str(caught.value) == "write_token tokens/a: status 500, cannot store [redacted]"


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
    assert logs == [{"event": "vault.login", "log_level": "info", "method": "approle", "expires_in": 1200}]


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
    assert events(logs) == ["vault.login", "vault.login"]
    assert logs[1]["expires_in"] == 300


def test_a_login_that_ran_out_unused_is_made_anew(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    vault.jumped = 1201
    ask(session)
    assert events(logs) == ["vault.login", "vault.login"]


def test_a_revoked_login_is_noticed_and_made_anew_once(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    vault.revoke_all()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: ask(session), range(24))) == [["le81823118"]] * 24
    assert events(logs) == ["vault.login", "vault.login"]
    assert len(vault.logins()) == 1


def test_a_403_by_policy_is_told_and_no_reason_to_log_in_again(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    accounts = VaultAccounts(session, mount="secret", prefix="elsewhere")
    for _ in range(2):
        with pytest.raises(VaultError, match=r"^list secret/elsewhere: status 403, permission denied$") as caught:
            accounts.names()
        assert (caught.value.kind, caught.value.status) == (Kind.LASTING, 403)
    assert events(logs) == ["vault.login"]


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
    hint = "see vault.role_id and vault.secret_id_file: the secret_id may have ended or be used up"
    assert texts == {f"approle login: status 400, invalid role or secret ID ({hint})"}
    # whoever came while one was under way takes its answer; a few may come after it
    assert vault.requests("auth/approle/login") - before < 6


def test_a_rotated_secret_id_is_read_at_the_next_login(vault: Vault, logs: Logs) -> None:
    session = vault.session()
    ask(session)
    roles = vault.openbao.client.auth.approle
    roles.destroy_secret_id(ROLE, vault.secret_id_file.read_text())
    vault.revoke_all()
    assert "invalid role or secret ID" in str(failure(session))
    vault.secret_id_file.write_text(roles.generate_secret_id(ROLE)["data"]["secret_id"] + "\n")
    assert ask(session)
    assert events(logs).count("vault.login") == 2


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
        (lambda file: file.write_text(f"{file.read_text()}\n{file.read_text()}"), r"holds more than a secret_id"),
        (lambda file: file.write_bytes(b"\xff\xfe"), r"holds more than a secret_id"),
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
    accounts = VaultAccounts(session, mount="secret", prefix="liveperson/accounts")
    accounts.names()
    with vault.openbao.frozen():
        vault.jumped = 610
        assert "no complete answer" in str(failure(session))
    vault.jumped = 620
    for _ in range(3):
        ask(session)
    assert events(logs) == ["vault.login", "vault.unavailable", "vault.renewed", "vault.recovered"]


def test_a_write_that_failed_is_not_over_when_a_read_works(logs: Logs) -> None:
    """Without a leader a standby still answers reads: it would be up and down again with every attempt."""
    outage = Outage("https://vault", steady)
    down = VaultError("status 500", status=500)
    for _ in range(3):
        outage.failed(Use.WRITE, down)
        outage.worked(Use.READ)
    assert events(logs) == ["vault.unavailable"]
    outage.failed(Use.READ, down)
    outage.worked(Use.WRITE)
    assert events(logs) == ["vault.unavailable", "vault.recovered"]


def test_a_renewal_that_fails_is_noticed_by_nobody_while_the_login_lives(vault: Vault, logs: Logs) -> None:
    vault.timeout = SHORT
    session = vault.session()
    ask(session)
    with vault.openbao.frozen():
        vault.jumped = 610
        assert session.login.keep_alive() > steady() + vault.jumped
    for _ in range(3):
        assert ask(session)  # which says nothing of the login
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
    """As hvac does it, the 307 of a standby is no error: the write is lost without a word."""
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


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_answer_of_vault_is_taken_or_refused_and_never_a_bug(kind: str, vault: Vault) -> None:
    with _Odd(ODD[kind]) as server:
        session = vault.session(TokenLogin(SecretStr("s.any")), address=server.url)
        accounts = VaultAccounts(session, mount="secret", prefix="accounts")
        tokens = VaultTokens(session, mount="secret", prefix="tokens")
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
        names = VaultAccounts(session, mount="secret", prefix="accounts").names()
        session.login.close()
    assert len(names) == taken
    said = [line for line in logs if line["log_level"] == "error"]
    assert [line["event"] for line in said] == ["accounts.synced"] * told
    assert all("more than 100000 accounts" in line["error"] for line in said)
