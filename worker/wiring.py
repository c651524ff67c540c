"""Builds the parts from the settings and joins them; what only the daemon has is built in serving."""

import random
import socket
import ssl
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from worker import net
from worker.core.plan import Timing
from worker.liveperson.domains import Domains
from worker.liveperson.sentinel import SentinelClient
from worker.manual import ManualRefresh
from worker.mint import Keys, Mint
from worker.ops.events import Events
from worker.refresh import ByHand, Refresher
from worker.schedule.dispatch import Pool
from worker.schedule.fleet import Fleet
from worker.schedule.steady import steady
from worker.settings import SentinelSettings, Settings, SettingsError, VaultSettings, variable
from worker.vault.accounts import VaultAccounts
from worker.vault.login import AppRoleLogin, JwtLogin, Login, TokenFileLogin, TokenLogin
from worker.vault.rights import VaultRights
from worker.vault.session import VaultSession
from worker.vault.tokens import VaultTokens

if TYPE_CHECKING:
    from worker.check import Preflight

_THREADS = 256
"""At most; made as they are wanted. Each Sentinel host takes no more of them than sentinel.max_in_flight."""

_LARGEST_OF_LIVEPERSON = 256 * 1024
"""Bytes of an answer: a token has 8 KiB at most, a JWKS or the Domain API's list some tens."""
_KEPT_OPEN = 32
"""Connections to one host, at most, that stay open when they are idle: after a rush the rest is closed."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What every mode needs."""

    session: VaultSession
    accounts: VaultAccounts
    tokens: VaultTokens
    rights: VaultRights
    domains: Domains
    sentinel: SentinelClient
    refresher: Refresher
    fleet: Fleet
    events: Events
    pool: Pool


def build(settings: Settings) -> Parts:
    """SettingsError where a file that a setting names cannot be used."""
    vault, sentinel = settings.vault, settings.sentinel
    session = VaultSession(
        vault.address,
        _login(vault),
        http=_http("vault.ca_cert", vault.ca_cert),
        namespace=vault.namespace,
        timeout=vault.timeout,
        clock=steady,
    )
    accounts = VaultAccounts(session, mount=settings.accounts.mount, prefix=settings.accounts.prefix)
    tokens = VaultTokens(session, mount=settings.tokens.mount, prefix=settings.tokens.prefix)
    http = _http("sentinel.ca_cert", sentinel.ca_cert, largest=_LARGEST_OF_LIVEPERSON)
    domains = Domains(
        http,
        url=sentinel.domain_api,
        cache=sentinel.domain_cache,
        allowed_hosts=sentinel.allowed_hosts,
        clock=steady,
    )
    client = SentinelClient(http, api_version=sentinel.api_version)
    timing = Timing(settings.refresh.at, settings.refresh.spread, replica=socket.gethostname())
    mint = Mint(
        domains=domains,
        sentinel=client,
        keys=_keys(sentinel, http),
        secrets=accounts,
        timing=timing,
        timeout=sentinel.timeout,
        clock=steady,
    )
    refresher = Refresher(accounts=accounts, tokens=tokens, mint=mint, timing=timing, clock=steady, sleep=time.sleep)
    fleet = Fleet(
        max_in_flight=sentinel.max_in_flight,
        max_per_second=sentinel.max_per_second,
        recheck_after=settings.accounts.sync_every.total_seconds(),
        jitter=random.random,
        phase=timing.phase,
    )
    events = Events(clock=steady, vault_path=tokens.path)
    return Parts(
        session=session,
        accounts=accounts,
        tokens=tokens,
        rights=VaultRights(
            session,
            accounts_mount=settings.accounts.mount,
            accounts_prefix=settings.accounts.prefix,
            tokens_mount=settings.tokens.mount,
            tokens_prefix=settings.tokens.prefix,
        ),
        domains=domains,
        sentinel=client,
        refresher=refresher,
        fleet=fleet,
        events=events,
        pool=Pool(_THREADS, thread_name_prefix="refresh"),
    )


def manual_refresh(parts: Parts, by_hand: ByHand) -> ManualRefresh:
    return ManualRefresh(
        accounts=parts.accounts,
        refresher=parts.refresher,
        fleet=parts.fleet,
        pool=parts.pool,
        clock=steady,
        report=parts.events.report,
        by_hand=by_hand,
    )


def preflight(settings: Settings, parts: Parts) -> "Preflight":
    from worker.check import Preflight

    return Preflight(
        vault=parts.session,
        login=parts.session.login,
        engines={"accounts.mount": parts.accounts.engine, "tokens.mount": parts.tokens.engine},
        granted=parts.rights.granted,
        accounts=parts.accounts,
        tokens=parts.tokens,
        domains=parts.domains,
        reach=parts.sentinel.reach,
        timeout=settings.sentinel.timeout,
        mend_account=parts.accounts.mending,
    )


def _http(setting: str, ca_cert: Path | None, *, largest: int = net.MAX_ANSWER) -> requests.Session:
    agent, file = f"appjwt-worker/{version('appjwt-worker')}", str(ca_cert) if ca_cert else None
    try:
        return net.session(user_agent=agent, ca_cert=file, connections=_KEPT_OPEN, largest=largest)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else (error.strerror or "unknown").lower()
        raise SettingsError(f"{setting} ({variable(setting)}): {ca_cert} cannot be used: {reason}") from None


def _keys(sentinel: SentinelSettings, http: requests.Session) -> Keys | None:
    if sentinel.verify == "off":
        return None
    from worker.liveperson.keys import PinnedKeys, PublishedKeys  # the cryptography library takes its time to load

    name = "sentinel.verify"
    match sentinel.verify:
        case "jwks":
            return PublishedKeys(http, clock=steady)
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
    if vault.method == "approle" and vault.role_id and vault.secret_id_file:
        return AppRoleLogin(mount, vault.role_id, vault.secret_id_file)
    if vault.token_file:
        return TokenFileLogin(vault.token_file)
    if vault.token:
        return TokenLogin(vault.token)
    raise SettingsError("vault: a login is missing")
