"""Builds the components from the settings and joins them; what only the daemon has is built in serving."""

import random
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import structlog

from worker import net
from worker.core.plan import RefreshPolicy
from worker.liveperson.domain_api import DomainApi
from worker.liveperson.hosts import HostResolver
from worker.liveperson.sentinel import SentinelClient
from worker.manual import ManualRefresh
from worker.obtain import Keys, TokenSource
from worker.ops.events import Events
from worker.refresh import ForceRefresh, Refresher
from worker.schedule.accounts import AccountScheduler
from worker.schedule.boottime import boottime
from worker.schedule.dispatch import Limits, Pool
from worker.settings import SentinelSettings, Settings, SettingsError, VaultSettings, unsupported_variables, variable
from worker.vault.accounts import AccountStore
from worker.vault.kv import VaultKv
from worker.vault.login import AppRoleLogin, JwtLogin, Login, TokenFileLogin, TokenLogin
from worker.vault.operation import Operation
from worker.vault.rights import VaultRights
from worker.vault.session import VaultSession
from worker.vault.tokens import TokenStore

if TYPE_CHECKING:
    from worker.check import Preflight

_MAX_THREADS = 256
"""At most; made as they are wanted. Each Sentinel host takes no more of them than sentinel.max_in_flight."""

_MAX_LIVEPERSON_BODY_BYTES = 256 * 1024
"""Bytes of an answer: a token has 8 KiB at most, a JWKS or the Domain API's list some tens."""
_MAX_IDLE_CONNECTIONS = 32
"""Connections to one host, at most, that stay open when they are idle: after a rush the rest is closed."""


_REQUESTS_PER_REFRESH = 3
"""To Vault: the token and the account are read, the token is written."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Components:
    """The components that every mode needs."""

    session: VaultSession
    mounts: dict[str, VaultKv]
    """By the setting that names it."""
    accounts: AccountStore
    tokens: TokenStore
    rights: VaultRights
    hosts: HostResolver
    sentinel: SentinelClient
    source: TokenSource
    refresher: Refresher
    scheduler: AccountScheduler
    events: Events
    pool: Pool
    sessions: tuple[net.Session, ...]

    def close_idle(self) -> None:
        """Close the connections that may not be used again."""
        for each in self.sessions:
            each.close_idle()

    def connected_hosts(self) -> set[str]:
        """Return the hosts that have connections."""
        return set().union(*(each.hosts() for each in self.sessions))


def build(settings: Settings) -> Components:
    """SettingsError where a file that a setting names cannot be used."""
    if unsupported := unsupported_variables():
        hint = "see vault.address, vault.ca_cert, vault.timeout and HTTPS_PROXY; a certificate is always verified"
        log.warning("settings.unread", variables=unsupported, hint=hint)
    vault, sentinel = settings.vault, settings.sentinel
    vault_http = _vault_http(vault)
    session = VaultSession(
        vault.address,
        _login(vault),
        http=vault_http,
        namespace=vault.namespace,
        timeout=vault.timeout,
        clock=boottime,
    )
    accounts_kv = VaultKv(session, settings.accounts.mount, read=Operation.READ_ACCOUNT)
    tokens_kv = VaultKv(session, settings.tokens.mount, read=Operation.READ_TOKEN, only_v2=True)
    accounts = AccountStore(accounts_kv, prefix=settings.accounts.prefix)
    tokens = TokenStore(tokens_kv, prefix=settings.tokens.prefix, clock=boottime)
    http = _http("sentinel", sentinel.ca_cert, max_body_bytes=_MAX_LIVEPERSON_BODY_BYTES)
    hosts = HostResolver(
        DomainApi(http, url=sentinel.domain_api),
        cache_ttl=sentinel.domain_cache_ttl,
        allowed_hosts=sentinel.allowed_hosts,
        clock=boottime,
    )
    client = SentinelClient(http, api_version=sentinel.api_version)
    policy = RefreshPolicy(settings.refresh.at, settings.refresh.jitter, replica=socket.gethostname())
    source = TokenSource(
        hosts=hosts,
        sentinel=client,
        keys=_keys(sentinel, http),
        secrets=accounts,
        policy=policy,
        timeout=sentinel.timeout,
        clock=boottime,
    )
    refresher = Refresher(
        accounts=accounts, tokens=tokens, source=source, policy=policy, clock=boottime, sleep=time.sleep
    )
    session.min_remaining = refresher.min_remaining
    scheduler = AccountScheduler(
        max_in_flight=sentinel.max_in_flight,
        max_per_second=sentinel.max_per_second,
        recheck_after=settings.accounts.sync_interval.total_seconds(),
        jitter=random.random,
        phase=policy.phase,
    )
    events = Events(clock=boottime, vault_path=tokens.path)
    return Components(
        session=session,
        mounts={"accounts.mount": accounts_kv, "tokens.mount": tokens_kv},
        accounts=accounts,
        tokens=tokens,
        rights=VaultRights(
            session,
            accounts=accounts_kv,
            accounts_prefix=settings.accounts.prefix,
            tokens=tokens_kv,
            tokens_prefix=settings.tokens.prefix,
        ),
        hosts=hosts,
        sentinel=client,
        source=source,
        refresher=refresher,
        scheduler=scheduler,
        events=events,
        pool=Pool(_MAX_THREADS, thread_name_prefix="refresh"),
        sessions=(vault_http, http),
    )


def manual_refresh(components: Components, force: ForceRefresh) -> ManualRefresh:
    return ManualRefresh(
        accounts=components.accounts,
        refresher=components.refresher,
        scheduler=components.scheduler,
        pool=components.pool,
        clock=boottime,
        report=components.events.report,
        force=force,
    )


def preflight(settings: Settings, components: Components) -> "Preflight":
    from worker.check import Preflight
    from worker.check_accounts import AccountChecks

    sentinel = settings.sentinel
    return Preflight(
        vault=components.session,
        mounts=components.mounts,
        granted=components.rights.granted,
        accounts=components.accounts,
        account_checks=AccountChecks(
            accounts=components.accounts,
            tokens=components.tokens,
            host_of=partial(components.hosts.sentinel_host, timeout=sentinel.timeout),
            reach=partial(components.sentinel.reach, timeout=sentinel.timeout),
            limits=Limits(sentinel.max_in_flight, sentinel.max_per_second),
        ),
        domain_api=sentinel.domain_api,
        retention_command=components.tokens.retention_command,
        requests_per_hour=partial(_requests_per_hour, settings),
    )


def _requests_per_hour(settings: Settings, accounts: int) -> float:
    """Estimate the daemon's requests to Vault, where tokens live for an hour."""
    hour, resync, sync = timedelta(hours=1), settings.tokens.resync_interval, settings.accounts.sync_interval
    return accounts * (_REQUESTS_PER_REFRESH / settings.refresh.at + hour / resync) + hour / sync


def _http(table: str, ca_cert: Path | None, **options: Any) -> net.Session:
    try:
        return net.session(
            user_agent=f"appjwt-worker/{version('appjwt-worker')}",
            ca_cert=str(ca_cert) if ca_cert else None,
            max_idle_connections=_MAX_IDLE_CONNECTIONS,
            on_reload_failed=lambda error: log.warning("settings.reload_failed", error=f"{table}.{error}"),
            clock=boottime,
            **options,
        )
    except net.TlsFileError as error:
        setting = f"{table}.{error.option}"
        raise SettingsError(f"{setting} ({variable(setting)}): {error.file} cannot be used: {error.reason}") from None


def _vault_http(vault: VaultSettings) -> net.Session:
    certificate, key = vault.client_cert, vault.client_key
    return _http(
        "vault",
        vault.ca_cert,
        client_cert=(str(certificate), str(key)) if certificate and key else None,
        server_name=vault.tls_server_name,
        headers={name: value.get_secret_value() for name, value in (vault.headers or {}).items()},
        retry_on_new_connection=True,  # behind a balancer it may lead to another server, and one that serves
    )


def _keys(sentinel: SentinelSettings, http: requests.Session) -> Keys | None:
    if sentinel.verify_signature == "off":
        return None
    from worker.liveperson.keys import PinnedKeys, PublishedKeys  # the cryptography library takes its time to load

    name = "sentinel.verify_signature"
    match sentinel.verify_signature:
        case "jwks":
            return PublishedKeys(http, clock=boottime)
        case file:
            try:
                return PinnedKeys(Path(file))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"{name} ({variable(name)}): {file} cannot be used: {reason}") from None


def _login(vault: VaultSettings) -> Login:
    mount = vault.auth_mount or vault.method
    if vault.method in ("kubernetes", "jwt") and vault.role:
        return JwtLogin(vault.method, mount, vault.role, vault.jwt_file)
    if vault.method == "approle" and vault.role_id:
        return AppRoleLogin(mount, vault.role_id, vault.secret_id_file)
    if vault.token_file:
        return TokenFileLogin(vault.token_file)
    if vault.token:
        return TokenLogin(vault.token)
    raise SettingsError("vault.auth_method: no credentials configured")
