"""Environment and file, which of them wins, and that an error lists every mistake at once, and no secret."""

import re
import secrets
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from worker import settings
from worker.settings import RefreshSettings, Settings, SettingsError, load

ADDRESS = "https://vault.example.com:8200"
FILE = """
[vault]
address = "https://vault.example.com:8200"
token_file = "sink"
"""

Env = Callable[..., None]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "worker.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def usable(env: Env) -> None:
    """Set an environment without which no settings can be used."""
    env(APPJWT_VAULT_ADDRESS=ADDRESS, APPJWT_VAULT_TOKEN_FILE="sink")


def faults(path: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path)
    return str(caught.value).splitlines()


# Where they come from


def test_an_address_and_a_login_are_all_that_is_needed(env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS=ADDRESS, APPJWT_VAULT_ROLE="worker")
    loaded = load(None)
    assert loaded.vault.method == "kubernetes"
    assert loaded.accounts.prefix == "liveperson/accounts"


def test_every_name_can_be_set_in_the_environment(env: Env) -> None:
    env(
        APPJWT_VAULT_ADDRESS=ADDRESS + "/",
        APPJWT_VAULT_ALLOW_HTTP="true",
        APPJWT_VAULT_NAMESPACE="brand",
        APPJWT_VAULT_CA_CERT="ca.pem",
        APPJWT_VAULT_TIMEOUT="1.5s",
        APPJWT_VAULT_AUTH_METHOD="approle",
        APPJWT_VAULT_AUTH_MOUNT="my/approle",
        APPJWT_VAULT_ROLE_ID="role",
        APPJWT_VAULT_SECRET_ID_FILE="secret_id",
        APPJWT_ACCOUNTS_MOUNT="/kv/",
        APPJWT_ACCOUNTS_PREFIX="a/b",
        APPJWT_ACCOUNTS_SYNC_INTERVAL="20m",
        APPJWT_SENTINEL_ALLOWED_HOSTS=" .liveperson.net, localhost:8443 ,",
        APPJWT_SENTINEL_DOMAIN_CACHE_TTL="1d",
        APPJWT_SENTINEL_MAX_IN_FLIGHT="3",
        APPJWT_REFRESH_AT="0.6",
        APPJWT_LOG_LEVEL="debug",
    )
    loaded = load(None)
    vault = loaded.vault
    assert (vault.address, vault.allow_http, vault.namespace, vault.ca_cert) == (ADDRESS, True, "brand", Path("ca.pem"))
    assert (vault.timeout, vault.auth_mount, vault.method) == (timedelta(seconds=1.5), "my/approle", "approle")
    assert (loaded.accounts.mount, loaded.accounts.prefix) == ("kv", "a/b")
    assert loaded.accounts.sync_interval == timedelta(minutes=20)
    assert loaded.sentinel.allowed_hosts == (".liveperson.net", "localhost:8443")
    assert loaded.sentinel.domain_cache_ttl == timedelta(days=1)
    assert loaded.sentinel.max_in_flight == 3
    assert (loaded.refresh.at, loaded.log.level) == (0.6, "debug")


def test_a_file_says_the_same_in_toml(file: Callable[[str], Path]) -> None:
    loaded = load(file(FILE + '[sentinel]\nallowed_hosts = [".a", "b"]\nmax_per_second = 2.5\n[refresh]\njitter = 0\n'))
    assert loaded.vault.token_file == Path("sink")
    assert loaded.sentinel.allowed_hosts == (".a", "b")
    assert (loaded.sentinel.max_per_second, loaded.refresh.jitter) == (2.5, 0)


def test_the_environment_wins_over_the_file_name_by_name(env: Env, file: Callable[[str], Path]) -> None:
    env(APPJWT_VAULT_NAMESPACE="from-env", APPJWT_LOG_LEVEL="error")
    loaded = load(file(FILE + 'namespace = "from-file"\ntimeout = "3s"\n[log]\nlevel = "debug"\nformat = "json"\n'))
    assert (loaded.vault.namespace, loaded.log.level) == ("from-env", "error")
    assert (loaded.vault.timeout, loaded.log.format) == (timedelta(seconds=3), "json")


def test_the_file_may_be_named_in_the_environment_but_a_flag_wins(
    env: Env, file: Callable[[str], Path], tmp_path: Path
) -> None:
    env(APPJWT_CONFIG=str(file(FILE + 'namespace = "by-env"\n')))
    other = tmp_path / "other.toml"
    other.write_text(FILE + 'namespace = "by-flag"\n')
    assert load(None).vault.namespace == "by-env"
    assert load(other).vault.namespace == "by-flag"


@pytest.mark.usefixtures("usable")
def test_an_empty_variable_is_an_absent_one(env: Env, file: Callable[[str], Path]) -> None:
    env(APPJWT_VAULT_NAMESPACE="", APPJWT_LOG_LEVEL="", APPJWT_CONFIG="", APPJWT_VAULT_TOKEN="")
    loaded = load(None)
    assert (loaded.vault.namespace, loaded.log.level, loaded.vault.token) == (None, "info", None)
    loaded = load(file(FILE + 'namespace = "from-file"\nrole_id = ""\n'))
    assert (loaded.vault.namespace, loaded.vault.role_id) == ("from-file", None)


@pytest.mark.parametrize("own", ["VAULT", "BAO"])
def test_vaults_own_names_serve_where_ours_are_absent(own: str, env: Env) -> None:
    token = secrets.token_hex(12)
    env(**{f"{own}_ADDR": ADDRESS, f"{own}_NAMESPACE": "ns", f"{own}_CACERT": "ca.pem", f"{own}_TOKEN": token})
    vault = load(None).vault
    assert (vault.address, vault.namespace, vault.ca_cert) == (ADDRESS, "ns", Path("ca.pem"))
    assert vault.method == "token"
    assert vault.token is not None
    assert vault.token.get_secret_value() == token


@pytest.mark.parametrize("own", ["VAULT", "BAO"])
def test_vaults_own_names_for_tls_serve_too(own: str, env: Env, file: Callable[[str], Path]) -> None:
    env(**{f"{own}_CAPATH": "cas", f"{own}_CLIENT_CERT": "c.pem", f"{own}_CLIENT_KEY": "c.key"})
    env(**{f"{own}_TLS_SERVER_NAME": "vault.internal"})
    vault = load(file(FILE)).vault
    assert (vault.ca_cert, vault.client_cert, vault.client_key) == (Path("cas"), Path("c.pem"), Path("c.key"))
    assert vault.tls_server_name == "vault.internal"
    env(**{f"{own}_CACERT": "ca.pem"})
    assert load(file(FILE)).vault.ca_cert == Path("ca.pem")
    env(APPJWT_VAULT_CA_CERT="this.pem", APPJWT_VAULT_TLS_SERVER_NAME="this.internal")
    vault = load(file(FILE)).vault
    assert (vault.ca_cert, vault.tls_server_name) == (Path("this.pem"), "this.internal")


@pytest.mark.parametrize("key", ["client_cert", "client_key"])
def test_a_client_certificate_and_its_key_belong_together(key: str, file: Callable[[str], Path]) -> None:
    pair = "vault.client_cert (APPJWT_VAULT_CLIENT_CERT) and vault.client_key (APPJWT_VAULT_CLIENT_KEY)"
    assert faults(file(f'{FILE}{key} = "x.pem"\n')) == [f"{pair}: set both"]


HEADERS = {"X-Access-Client": "one.access", "X-Access-Secret": "a=b==;c d"}


def plain(headers: dict[str, SecretStr] | None) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in (headers or {}).items()}


def test_headers_are_a_table_in_the_file_and_one_line_in_the_environment(env: Env, file: Callable[[str], Path]) -> None:
    lines = "".join(f'{name} = "{value}"\n' for name, value in HEADERS.items())
    assert plain(load(file(f"{FILE}[vault.headers]\n{lines}")).vault.headers) == HEADERS
    env(APPJWT_VAULT_HEADERS=" X-Access-Client=one.access, X-Access-Secret=a=b==;c d ,")
    for text in (FILE, f'{FILE}headers = {{ X-Other = "not this" }}\n'):
        assert plain(load(file(text)).vault.headers) == HEADERS


@pytest.mark.parametrize(
    "text", ["SECRET", "=SECRET", "X-Name=", "X Name=SECRET", "X-Name=SECRET\u00fc", "X-A=b,SECRET"]
)
@pytest.mark.usefixtures("usable")
def test_headers_that_are_none_are_refused_and_not_quoted(text: str, env: Env) -> None:
    env(APPJWT_VAULT_HEADERS=text)
    text = "must be headers, as a table or as Name=value,Name=value, in printable ASCII"
    assert faults() == [f"vault.headers (APPJWT_VAULT_HEADERS): {text}"]


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "X-Vault-Token", "x-vault-namespace", "User-Agent", "accept"]
)
@pytest.mark.usefixtures("usable")
def test_headers_of_each_request_are_no_further_ones(name: str, env: Env) -> None:
    env(APPJWT_VAULT_HEADERS=f"X-Access=SECRET,{name}=SECRET")
    text = "must be further headers: not X-Vault-Token, Content-Type and others of each request"
    assert faults() == [f"vault.headers (APPJWT_VAULT_HEADERS): {text}"]


@pytest.mark.parametrize("line", ["headers = 7", 'headers = ["X-Name"]', "headers = { X-Name = 7 }"])
def test_headers_of_another_type_are_refused(line: str, file: Callable[[str], Path]) -> None:
    assert faults(file(f"{FILE}{line}\n"))[0].startswith("vault.headers (APPJWT_VAULT_HEADERS): must be headers")


@pytest.mark.parametrize("name", ["https://vault.internal", "vault_internal", "a/b", "-"])
@pytest.mark.usefixtures("usable")
def test_a_name_of_a_server_is_a_host_name(name: str, env: Env) -> None:
    env(APPJWT_VAULT_TLS_SERVER_NAME=name)
    text = "must be a host name such as vault.example.com"
    assert faults() == [f"vault.tls_server_name (APPJWT_VAULT_TLS_SERVER_NAME): {text}"]


def test_our_names_win_over_vaults_own_in_either_place(env: Env, file: Callable[[str], Path]) -> None:
    env(VAULT_ADDR="https://not.this", VAULT_NAMESPACE="not-this", APPJWT_VAULT_NAMESPACE="this")
    vault = load(file(FILE)).vault
    assert (vault.address, vault.namespace) == (ADDRESS, "this")


@pytest.mark.usefixtures("usable")
def test_a_token_in_vaults_own_name_gives_way_to_a_token_file(env: Env, file: Callable[[str], Path]) -> None:
    env(VAULT_TOKEN=secrets.token_hex(12))
    assert load(None).vault.token is None
    env(APPJWT_VAULT_TOKEN_FILE="")
    assert load(file(FILE)).vault.token is None
    assert load(None).vault.token is not None


def test_a_setting_has_a_name_and_a_variable() -> None:
    assert "vault.address" in settings.names()
    assert settings.variable("accounts.sync_interval") == "APPJWT_ACCOUNTS_SYNC_INTERVAL"
    assert len({settings.variable(name) for name in settings.names()}) == len(settings.names())


# What is wrong with them


def test_what_is_missing_is_named_in_both_ways() -> None:
    assert faults() == ["vault.address (APPJWT_VAULT_ADDRESS): missing"]


def test_every_fault_is_told_in_one_go_with_a_line_each(env: Env, file: Callable[[str], Path]) -> None:
    env(APPJWT_LOG_LEVEL="loud", APPJWT_VAULT_ADRESS="x", APPJWT_SENTINEL_TIMEOUT="soon")
    text = '[vault]\naddress = "vault"\n[acounts]\nmount = "kv"\n[refresh]\nat = 2\nevery = 3\n'
    assert faults(file(text)) == [
        "APPJWT_VAULT_ADRESS: there is no such setting; did you mean APPJWT_VAULT_ADDRESS?",
        "acounts.mount: there is no such setting; did you mean accounts.mount?",
        "refresh.every: there is no such setting; did you mean refresh.jitter?",
        "vault.address (APPJWT_VAULT_ADDRESS): must be a URL such as https://vault.example.com:8200",
        "sentinel.timeout (APPJWT_SENTINEL_TIMEOUT): must be a duration such as 90s, 20m or 1h",
        "refresh.at (APPJWT_REFRESH_AT): input should be less than or equal to 0.9",
        "log.level (APPJWT_LOG_LEVEL): input should be 'debug', 'info', 'warning' or 'error'",
    ]


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("APPJWT_VAULT_ADRESS", "; did you mean APPJWT_VAULT_ADDRESS?"),
        ("APPJWT_SYNC_INTERVAL", "; did you mean APPJWT_ACCOUNTS_SYNC_INTERVAL?"),
        ("APPJWT_CONFIG_FILE", "; did you mean APPJWT_CONFIG?"),
        ("APPJWT_LOG_LEVEL_", "; did you mean APPJWT_LOG_LEVEL?"),
        ("APPJWT_XYZ", ""),
        ("APPJWT_VAULT", "; did you mean APPJWT_VAULT_ROLE?"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_right_one(name: str, fault: str, env: Env) -> None:
    """Pydantic-settings does not see an unknown name in the environment."""
    env(**{name: "x"})
    assert faults() == [f"{name}: there is no such setting{fault}"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('adress = "x"', "adress: must be inside a [table]; did you mean vault.address?"),
        ("[vault.deeper]\nx = 1", "vault.deeper: there is no such setting; did you mean vault."),
        ("[nothing]\nlike_it = 1", "nothing.like_it: there is no such setting"),
        ("vault = 7", "vault: must be inside a [table]"),
    ],
)
@pytest.mark.usefixtures("usable")
def test_an_unknown_key_is_named_with_the_nearest_right_one(text: str, fault: str, file: Callable[[str], Path]) -> None:
    assert faults(file(text))[0].startswith(fault)


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    "name",
    [
        "APPJWT_WORKER_SERVICE_HOST",
        "APPJWT_WORKER_SERVICE_PORT",
        "APPJWT_WORKER_SERVICE_PORT_HTTP",
        "APPJWT_WORKER_PORT",
        "APPJWT_WORKER_PORT_8080_TCP",
        "APPJWT_WORKER_PORT_8080_TCP_ADDR",
        "APPJWT_SERVICE_HOST",
        "APPJWT_PORT_8080_TCP_PROTO",
        "APPJWT_VAULT_SERVICE_HOST",
        "APPJWT_VAULT_PORT_8200_TCP",
        "APPJWT_LOG_PORT",
    ],
)
def test_what_kubernetes_injects_for_a_service_is_left_alone(name: str, env: Env) -> None:
    """Kubernetes injects these names, also for a service whose name begins like a table of ours."""
    env(**{name: "tcp://10.0.0.1:8080"})
    assert load(None).vault.address == ADDRESS


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("VAULT_TIMEOUT", "10", "must be a duration such as 90s, 20m or 1h"),
        ("VAULT_TIMEOUT", "-1s", "must be a duration such as 90s, 20m or 1h"),
        ("VAULT_TIMEOUT", "1h30m", "must be a duration such as 90s, 20m or 1h"),
        ("VAULT_TIMEOUT", "0s", "input should be greater than 0 seconds"),
        ("VAULT_TIMEOUT", "2m", "input should be less than or equal to 1 minute"),
        ("VAULT_TIMEOUT", "9" * 15 + "d", "is longer than any duration can be"),
        ("VAULT_TIMEOUT", "9" * 400 + "s", "is longer than any duration can be"),
        ("ACCOUNTS_SYNC_INTERVAL", "0.5s", "input should be greater than or equal to 1 second"),
        ("SENTINEL_DOMAIN_CACHE_TTL", "25h", "input should be less than or equal to 1 day"),
        ("SENTINEL_ALLOWED_HOSTS", ",", "tuple should have at least 1 item after validation, not 0"),
        (
            "SENTINEL_MAX_IN_FLIGHT",
            "many",
            "input should be a valid integer, unable to parse string as an integer",
        ),
        ("SENTINEL_MAX_PER_SECOND", "0", "input should be greater than 0"),
        ("SENTINEL_MAX_PER_SECOND", "inf", "input should be less than or equal to 1000"),
        ("SENTINEL_MAX_PER_SECOND", "nan", "input should be less than or equal to 1000"),
        ("REFRESH_AT", "1", "input should be less than or equal to 0.9"),
        ("VAULT_ALLOW_HTTP", "perhaps", "input should be a valid boolean, unable to interpret input"),
        ("LOG_FORMAT", "xml", "input should be 'auto', 'json' or 'console'"),
        ("TOKENS_PREFIX", "a/../b", "must be a path in Vault such as liveperson/accounts"),
        ("TOKENS_PREFIX", "a/./b", "must be a path in Vault such as liveperson/accounts"),
        ("TOKENS_PREFIX", "a//b", "must be a path in Vault such as liveperson/accounts"),
        ("TOKENS_PREFIX", "a b", "must be a path in Vault such as liveperson/accounts"),
        ("TOKENS_PREFIX", "/", "must be a path in Vault such as liveperson/accounts"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_name(variable: str, value: str, fault: str, env: Env) -> None:
    env(**{f"APPJWT_{variable}": value})
    name = variable.lower().replace("_", ".", 1)
    assert faults() == [f"{name} (APPJWT_{variable}): {fault}"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("role_id = 7", "vault.role_id (APPJWT_VAULT_ROLE_ID): input should be a valid string"),
        ("timeout = 10", "vault.timeout (APPJWT_VAULT_TIMEOUT): must be a duration such as 90s, 20m or 1h"),
        (
            '[sentinel]\nallowed_hosts = ["*.liveperson.net"]',
            "sentinel.allowed_hosts (APPJWT_SENTINEL_ALLOWED_HOSTS): must be hosts, such as a.example:8443 or .example",
        ),
        (
            '[sentinel]\nallowed_hosts = [".a", 7]',
            "sentinel.allowed_hosts (APPJWT_SENTINEL_ALLOWED_HOSTS): input should be a valid string",
        ),
        (
            "[sentinel]\nmax_in_flight = 1.5",
            (
                "sentinel.max_in_flight (APPJWT_SENTINEL_MAX_IN_FLIGHT): input should be a valid integer, "
                "got a number with a fractional part"
            ),
        ),
        (
            "[tokens]\nmount = 7",
            "tokens.mount (APPJWT_TOKENS_MOUNT): must be a path in Vault such as liveperson/accounts",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_its_name(line: str, fault: str, file: Callable[[str], Path]) -> None:
    assert faults(file(FILE + line)) == [fault]


@pytest.mark.parametrize(
    "url",
    [
        "vault.example.com",
        "ftp://vault.example.com",
        "https://",
        "https:///v1",
        "https://[::1",
        "https://vault.example.com:99999",
        "https://vault.example.com:0",
        "https://vault.example.com:port",
        "https://vault.example.com?x=1",
        "https://vault.example.com#x",
        "https://vault example.com",
        "https://user:password@vault.example.com",
        "https://:password@vault.example.com",
    ],
)
@pytest.mark.parametrize("name", ["vault.address", "sentinel.domain_api"])
@pytest.mark.usefixtures("usable")
def test_what_is_no_plain_url_is_refused_and_not_repeated(name: str, url: str, env: Env) -> None:
    env(**{settings.variable(name): url})
    assert faults() == [f"{name} ({settings.variable(name)}): must be a URL such as https://vault.example.com:8200"]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("{}\n", "ends with a line break: remove it"),
        ("{}\r\n", "ends with a line break: remove it"),
        ("{} ", "ends with a space: remove it"),
        ("{}\t", "ends with a space: remove it"),
        (" {}", "begins with a space: remove it"),
        ("\n{}", "begins with a line break: remove it"),
    ],
)
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("vault.address", ADDRESS),
        ("sentinel.domain_api", "https://api.example.com"),
        ("vault.namespace", "brand"),
        ("accounts.mount", "kv"),
        ("accounts.prefix", "a/b"),
        ("tokens.prefix", "a/c"),
        ("vault.role_id", "75588e18"),
        ("vault.secret_id_file", "/run/secret_id"),
        ("sentinel.verify_signature", "keys.pem"),
        ("http.listen", "127.0.0.1:8080"),
    ],
)
@pytest.mark.usefixtures("usable")
def test_a_space_or_line_break_at_an_end_is_named_for_nobody_sees_it(
    name: str, right: str, value: str, fault: str, env: Env
) -> None:
    env(**{settings.variable(name): value.format(right)})
    assert faults() == [f"{name} ({settings.variable(name)}): {fault}"]


@pytest.mark.usefixtures("usable")
def test_a_choice_may_be_written_in_capitals(env: Env, file: Callable[[str], Path]) -> None:
    env(APPJWT_LOG_LEVEL="INFO", APPJWT_LOG_FORMAT="Json", APPJWT_VAULT_AUTH_METHOD="Token")
    loaded = load(file('[sentinel]\nverify_signature = "JWKS"\n'))
    assert (loaded.log.level, loaded.log.format, loaded.vault.method) == ("info", "json", "token")
    assert loaded.sentinel.verify_signature == "jwks"
    assert load(file('[sentinel]\nverify_signature = "Keys.PEM"\n')).sentinel.verify_signature == "Keys.PEM"


@pytest.mark.parametrize("address", ["http://localhost:8200", "http://127.0.0.1", "http://[::1]:8200", ADDRESS])
@pytest.mark.usefixtures("usable")
def test_http_to_this_machine_is_allowed(address: str, env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS=address, APPJWT_SENTINEL_DOMAIN_API=address)
    loaded = load(None)
    assert (loaded.vault.address, loaded.sentinel.domain_api) == (address, address)


@pytest.mark.parametrize(
    "address",
    [
        "http://vault.example.com",
        "HTTP://vault.example.com",
        "hTTp://vault.example.com",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://10.0.0.1:8200",
    ],
)
@pytest.mark.usefixtures("usable")
def test_http_to_anywhere_else_is_refused_however_it_is_written(address: str, env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS=address, APPJWT_SENTINEL_DOMAIN_API=address)
    allowed = "vault.allow_http (APPJWT_VAULT_ALLOW_HTTP)"
    assert faults() == [
        f"vault.address (APPJWT_VAULT_ADDRESS): plain http only to loopback, or where {allowed} is true",
        "sentinel.domain_api (APPJWT_SENTINEL_DOMAIN_API): plain http only to loopback",
    ]


@pytest.mark.parametrize("host", ["localhost", "localhost.", "127.0.0.1", "127.0.0.2", "[::1]"])
@pytest.mark.usefixtures("usable")
def test_http_to_this_machine_itself_is_allowed_however_it_is_written(host: str, env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS=f"http://{host}:8200", APPJWT_SENTINEL_DOMAIN_API=f"http://{host}:8201")
    loaded = load(None)
    assert (loaded.vault.address, loaded.sentinel.domain_api) == (f"http://{host}:8200", f"http://{host}:8201")


@pytest.mark.usefixtures("usable")
def test_http_to_vault_can_be_allowed_to_sentinel_it_cannot(env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS="HTTP://vault:8200", APPJWT_VAULT_ALLOW_HTTP="true")
    assert load(None).vault.address == "http://vault:8200"
    env(APPJWT_SENTINEL_DOMAIN_API="http://api.liveperson.net")
    assert faults() == ["sentinel.domain_api (APPJWT_SENTINEL_DOMAIN_API): plain http only to loopback"]


_BOTH = "accounts.prefix (APPJWT_ACCOUNTS_PREFIX) and tokens.prefix (APPJWT_TOKENS_PREFIX)"


def put_apart(env: Env, accounts: str, tokens: str) -> None:
    for table, place in (("ACCOUNTS", accounts), ("TOKENS", tokens)):
        mount, prefix = place.split()
        env(**{f"APPJWT_{table}_MOUNT": mount, f"APPJWT_{table}_PREFIX": prefix})


@pytest.mark.parametrize(
    ("accounts", "tokens"), [("kv a/b", "kv a/b"), ("kv a", "kv a/b"), ("kv a/b/c", "kv a/b"), ("kv /a/b/", "kv a/b")]
)
@pytest.mark.usefixtures("usable")
def test_on_one_mount_neither_prefix_may_contain_the_other(accounts: str, tokens: str, env: Env) -> None:
    put_apart(env, accounts, tokens)
    assert faults() == [f"{_BOTH}: on one mount neither may contain the other"]


@pytest.mark.parametrize(("accounts", "tokens"), [("kv a", "kv ab"), ("kv a/b", "kv a/c"), ("kv a", "other a")])
@pytest.mark.usefixtures("usable")
def test_prefixes_that_share_no_path_are_apart(accounts: str, tokens: str, env: Env) -> None:
    put_apart(env, accounts, tokens)
    assert load(None).tokens.prefix == tokens.split()[1]


@pytest.mark.usefixtures("usable")
def test_an_empty_prefix_in_the_file_is_the_mounts_root(env: Env, file: Callable[[str], Path]) -> None:
    loaded = load(file('[accounts]\nmount = "brands"\nprefix = ""\n[tokens]\nmount = "tokens"\nprefix = ""\n'))
    assert (loaded.accounts.prefix, loaded.tokens.prefix) == ("", "")
    assert loaded.accounts.path == "brands"
    env(APPJWT_ACCOUNTS_PREFIX="", APPJWT_TOKENS_PREFIX="")
    assert (load(None).accounts.prefix, load(None).tokens.prefix) == ("liveperson/accounts", "liveperson/tokens")


@pytest.mark.parametrize("table", ["accounts", "tokens"])
@pytest.mark.usefixtures("usable")
def test_a_whole_mount_holds_no_other_prefix(table: str, file: Callable[[str], Path]) -> None:
    (fault,) = faults(file(f'[{table}]\nprefix = ""\n'))
    assert fault == (
        f"{_BOTH}: on one mount neither may contain the other; an empty one is the whole mount: "
        "set another accounts.mount (APPJWT_ACCOUNTS_MOUNT)"
    )


@pytest.mark.parametrize("vendor", ["VAULT", "BAO"])
def test_names_of_vaults_own_that_would_change_the_way_to_it_are_named_as_not_read(vendor: str, env: Env) -> None:
    assert settings.unsupported_variables() == []
    read = {f"{vendor}_{name}": "x" for name in ("ADDR", "NAMESPACE", "CACERT", "TOKEN")}
    env(**read, **{f"{vendor}_SKIP_VERIFY": "false", f"{vendor}_SRV_LOOKUP": "0", f"{vendor}_PROXY_ADDR": ""})
    assert settings.unsupported_variables() == []
    env(**{f"{vendor}_SKIP_VERIFY": "true", f"{vendor}_PROXY_ADDR": "http://proxy", f"{vendor}_FORMAT": "json"})
    assert settings.unsupported_variables() == [f"{vendor}_PROXY_ADDR", f"{vendor}_SKIP_VERIFY"]


_TOKEN, _TOKEN_FILE = "vault.token (APPJWT_VAULT_TOKEN)", "vault.token_file (APPJWT_VAULT_TOKEN_FILE)"
_METHOD = "vault.auth_method (APPJWT_VAULT_AUTH_METHOD)"
_APPROLE = (
    f"{_METHOD} is approle: set vault.role_id (APPJWT_VAULT_ROLE_ID), "
    "and vault.secret_id_file (APPJWT_VAULT_SECRET_ID_FILE) if the role requires one"
)
_ROLE = "vault.role (APPJWT_VAULT_ROLE): missing for the login by"
_NONE = f"{_ROLE} kubernetes; {_METHOD} or {_TOKEN} select another one"


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ('token = "x"\ntoken_file = "y"', f"{_TOKEN} and {_TOKEN_FILE}: set one of them"),
        ('auth_method = "token"', f"{_METHOD} is token: set {_TOKEN} or {_TOKEN_FILE}"),
        ('auth_method = "approle"\nsecret_id_file = "x"', _APPROLE),
        ('auth_method = "approle"\ntoken = "x"', _APPROLE),
        ('auth_method = "jwt"', f"{_ROLE} jwt"),
        ('role_id = "x"', _NONE),
        ("", _NONE),
    ],
)
def test_a_login_that_is_not_complete_is_told_with_what_to_set(
    lines: str, fault: str, file: Callable[[str], Path]
) -> None:
    assert faults(file(f'[vault]\naddress = "{ADDRESS}"\n{lines}')) == [fault]


@given(st.floats(0.1, 0.9), st.floats(0, 0.2))
def test_a_refresh_is_well_inside_a_tokens_life_or_refused(at: float, jitter: float) -> None:
    """Due at the beginning would be a hot loop on Sentinel, due at the end no refresh at all."""
    if round(at - jitter, 6) >= 0.05 and round(at + jitter, 6) <= 0.95:
        assert RefreshSettings(at=at, jitter=jitter).jitter == jitter
    else:
        with pytest.raises(ValueError, match=r"at - jitter must be 0\.05 or more, at \+ jitter 0\.95 or less"):
            RefreshSettings(at=at, jitter=jitter)


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(("at", "jitter"), [("0.9", "0.05"), ("0.25", "0.2"), ("0.1", "0.05")])
def test_the_limits_themselves_are_inside(at: str, jitter: str, env: Env) -> None:
    env(APPJWT_REFRESH_AT=at, APPJWT_REFRESH_JITTER=jitter)
    assert load(None).refresh.at == float(at)


# Files that cannot be read


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert faults(path) == [f"{path}: cannot be read: no such file or directory"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: is a directory"]


def test_a_file_named_in_the_environment_must_be_there_too(env: Env, tmp_path: Path) -> None:
    env(APPJWT_CONFIG=str(tmp_path / "none.toml"))
    assert faults() == [f"{tmp_path / 'none.toml'}: cannot be read: no such file or directory"]


def test_a_file_that_is_no_toml_is_told_with_the_place_and_without_its_content(file: Callable[[str], Path]) -> None:
    path = file('[vault]\ntoken = s3cr3t\naddress = "x"')
    assert faults(path) == [f"{path}: not valid TOML: Invalid value (at line 2, column 9)"]


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "worker.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert faults(path) == [f"{path}: not valid UTF-8"]


# Secrets


def test_no_fault_holds_a_secret(env: Env, file: Callable[[str], Path]) -> None:
    secret = secrets.token_hex(13)
    env(VAULT_TOKEN=secret, APPJWT_VAULT_TOKEN=secret, APPJWT_VAULT_SECRET=secret, APPJWT_VAULT_TIMEOUT=secret)
    path = file(f'[vault]\naddress = "https://x:{secret}@y"\nsecret_id_file = ["{secret}"]\nsecret = "{secret}"\n')
    assert len(faults(path)) == 5
    assert secret not in "\n".join(faults(path))


def test_no_repr_of_settings_holds_a_secret(env: Env) -> None:
    secret = secrets.token_hex(13)
    env(APPJWT_VAULT_ADDRESS=ADDRESS, APPJWT_VAULT_TOKEN=secret, APPJWT_VAULT_HEADERS=f"X-Access={secret}")
    loaded = load(None)
    assert secret not in repr(loaded) + str(loaded) + loaded.model_dump_json()


# The file that lists them all

LISTED = Path(__file__, "../../../config/worker.toml").resolve()
_LINE = re.compile(r"(?P<off># )?(?P<key>\w+) = (?P<value>.+?)  # (?P<comment>.+)")


def listed() -> dict[str, tuple[bool, Any, str]]:
    """Return by name: whether it is commented out, the value, the comment."""
    found: dict[str, tuple[bool, Any, str]] = {}
    table = ""
    for line in LISTED.read_text(encoding="utf-8").splitlines()[2:]:
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            table = heading[1]
        elif line:
            match = _LINE.fullmatch(line)
            assert match, f"no setting with its comment: {line}"
            value = tomllib.loads(f"x = {match['value']}")["x"]
            found[f"{table}.{match['key']}"] = (bool(match["off"]), value, match["comment"])
    return found


def defaults() -> dict[str, object]:
    """Return the defaults by name; PydanticUndefined = there is none."""
    tables = {name: cast("type[BaseModel]", field.annotation) for name, field in Settings.model_fields.items()}
    return {
        f"{name}.{key}": field.default for name, table in tables.items() for key, field in table.model_fields.items()
    }


def test_the_listed_file_names_every_setting_once_in_the_order_of_the_class() -> None:
    assert list(listed()) == settings.names()
    assert len(LISTED.read_text().splitlines()) == 2 + len(settings.names()) + 2 * len(Settings.model_fields)


def test_what_has_no_default_is_commented_out_in_the_listed_file_and_nothing_else() -> None:
    off = {name for name, (commented_out, _, _) in listed().items() if commented_out}
    assert off == {name for name, default in defaults().items() if default in (None, PydanticUndefined)}


def test_the_listed_file_says_exactly_the_defaults(env: Env) -> None:
    env(APPJWT_VAULT_ADDRESS=ADDRESS, APPJWT_VAULT_TOKEN_FILE="sink")
    assert load(LISTED) == load(None)
    listed = {f"{table}.{key}" for table, keys in tomllib.loads(LISTED.read_text()).items() for key in keys}
    assert listed == {name for name, default in defaults().items() if default not in (None, PydanticUndefined)}


@pytest.mark.parametrize("name", [name for name, (commented_out, _, _) in listed().items() if commented_out])
def test_each_example_in_the_listed_file_can_be_used_as_it_stands(name: str, file: Callable[[str], Path]) -> None:
    table, _, key = name.partition(".")
    text = LISTED.read_text(encoding="utf-8")
    text = re.sub(rf"(\[{table}\]\n(?:(?!\[).*\n)*?)# ({key} = )", r"\1\2", text, count=1)
    needed = {"vault.address": f'address = "{ADDRESS}"', "vault.token_file": 'token_file = "sink"'}
    if name in ("vault.token", "vault.auth_method"):
        needed["vault.token_file"] = 'role = "x"'
    if name.startswith("vault.client_"):
        needed |= {"vault.client_cert": 'client_cert = "x"', "vault.client_key": 'client_key = "x"'}
    added = "\n".join(line for setting, line in needed.items() if setting != name)
    loaded = load(file(text.replace("[vault]\n", f"[vault]\n{added}\n", 1)))
    assert getattr(getattr(loaded, table), key) is not None
