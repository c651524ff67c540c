"""One account's story: what is stored, why it is refreshed, where a new token comes from, and the fenced write.

When that happens is fleet's business, what is sound is core's. What it needs of the two outside worlds it says in the
Protocols below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from worker.core import appjwt, plan
from worker.core.account import Account
from worker.core.appjwt import AppJWT, Expected
from worker.core.errors import AccountDisabledError, AccountGoneError, CasMismatchError, Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result
from worker.core.plan import Held, Reason, Standing, Timing
from worker.core.unchecked import Answer, Stored

_WRITE_TRIES = 3
_SECRET_REFUSED = frozenset({400, 401, 403})


class Accounts(Protocol):
    def names(self) -> frozenset[str]: ...
    def read(self, name: str) -> Account: ...
    def previous(self, current: Account) -> Account | None: ...


class Tokens(Protocol):
    def read(self, name: str) -> Stored: ...
    def write(self, name: str, token: AppJWT, beside: Mapping[str, str], replaces: Stored) -> int: ...


class Domains(Protocol):
    def sentinel_host(self, account: Account, timeout: timedelta) -> str: ...


class Sentinel(Protocol):
    def mint(self, account: Account, host: str, timeout: timedelta) -> Answer: ...


class Keys(Protocol):
    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None: ...


@dataclass(frozen=True, slots=True)
class ByHand:
    """What the operator asks for: refresh whatever the schedule says."""

    if_less_than: float = float("inf")
    """Only where less life than that is left, in seconds."""
    dry_run: bool = False
    """Only say whether, and why."""


@dataclass(frozen=True, slots=True)
class _Minted:
    """A checked token on its way to Vault."""

    token: AppJWT
    token_type: str
    expected: Expected
    host: str
    held: Held
    reason: Reason
    previous_used: bool

    def beside(self) -> dict[str, str]:
        """What Vault's secret tells beside the token itself."""
        token = self.token
        early = timedelta(seconds=self.held.life.ends - self.held.refresh_at)
        return {
            **token.claims(),
            "token_type": self.token_type,
            "account_id": self.expected.account_id or "",
            "sentinel_host": self.host,
            "fingerprint": token.fingerprint,
            "issued_at": appjwt.utc(token.iat),
            "expires_at": appjwt.utc(token.exp),
            "refresh_at": appjwt.utc(token.exp - early),
        }


class Refresher:
    def __init__(
        self,
        *,
        accounts: Accounts,
        tokens: Tokens,
        domains: Domains,
        sentinel: Sentinel,
        keys: Keys | None,
        timing: Timing,
        timeout: timedelta,
        clock: Callable[[], float],
    ) -> None:
        """
        :param keys: who must have signed a token; None = its signature is not looked at.
        :param timeout: for one exchange with LivePerson; less where a token is about to end.
        """
        self._accounts = accounts
        self._tokens = tokens
        self._domains = domains
        self._sentinel = sentinel
        self._keys = keys
        self._timing = timing
        self._timeout = timeout
        self._clock = clock
        self._unwritten: dict[str, _Minted] = {}
        """Minted, but not known to be in Vault: the next try writes them, unless they are there, or due themselves."""

    def look(self, name: str) -> Outcome:
        """Adopt the stored token if it is fresh, or say why it is to be refreshed. No credentials are read."""
        started = self._clock()
        try:
            stored = self._tokens.read(name)
            standing = self._judge(name, stored, None)
        except RefreshError as error:
            return self._ended(name, started, error)
        if standing.reason:
            return self._skipped(name, started, stored, standing, standing.reason)
        return self._adopted(name, started, stored, standing)

    def refresh(self, name: str, *, held: Held | None = None, by_hand: ByHand | None = None) -> Outcome:
        """Refresh the account's token if it is due, or as the operator asks. RefreshError becomes an outcome.

        :param held: what was remembered of the stored token when it became due.
        """
        started = self._clock()
        standing = Standing(None)
        reason = Reason.MANUAL if by_hand else None
        host: str | None = None
        try:
            stored = self._tokens.read(name)
            standing = self._judge(name, stored, held)
            left = standing.held.life.left(started) if standing.held else 0.0
            if by_hand and left >= by_hand.if_less_than:
                return self._skipped(name, started, stored, standing, reason=None)
            if standing.reason is None and not by_hand:
                return self._adopted(name, started, stored, standing)
            account = self._accounts.read(name)
            expected = Expected.of(account)
            standing = self._judge_as(expected, name, stored, held)
            if by_hand and by_hand.dry_run:
                return self._skipped(name, started, stored, standing, standing.reason or reason)
            reason = reason or standing.reason or Reason.DUE
            minted = self._unwritten.get(name)
            if by_hand or minted is None or minted.expected != expected or minted.held.refresh_at <= started:
                timeout = plan.exchange_timeout(self._timeout, left)
                host = self._domains.sentinel_host(account, timeout)
                minted = self._unwritten[name] = self._mint(account, host, timeout, reason)
            return self._publish(name, started, minted, stored, held)
        except RefreshError as error:
            return self._ended(name, started, error, reason=reason, host=host, held=standing.held)

    def is_gone(self, name: str) -> bool:
        """Whether the account's own read says so; a fault says nothing."""
        try:
            self._accounts.read(name)
        except AccountGoneError:
            self._unwritten.pop(name, None)
            return True
        except RefreshError:
            pass
        return False

    def _judge(self, name: str, stored: Stored, held: Held | None) -> Standing:
        """Judge what is stored, without the account's secret as far as that goes."""
        standing = self._judge_as(Expected(), name, stored, held)
        if standing.token and name.partition("/")[0] not in standing.token.aud:
            # right only if the account's secret gives another account_id
            return self._judge_as(Expected.of(self._accounts.read(name)), name, stored, held)
        return standing

    def _judge_as(self, expected: Expected, name: str, stored: Stored, held: Held | None) -> Standing:
        raw = stored.raw.get_secret_value() if stored.raw else None
        at = self._clock()
        return plan.judge(name, raw, expected, server_now=stored.now, at=at, timing=self._timing, held=held)

    def _judge_beside(self, minted: _Minted, name: str, stored: Stored, held: Held | None) -> Standing:
        """Judge by Sentinel's clock, which `minted` knows: by a Vault's that lags a new token would not stand."""
        sentinel_now = minted.token.exp - timedelta(seconds=minted.held.life.ends - self._clock())
        return self._judge_as(minted.expected, name, replace(stored, now=sentinel_now), held)

    def _mint(self, account: Account, host: str, timeout: timedelta, reason: Reason) -> _Minted:
        expected = Expected.of(account)
        answer, previous_used = self._ask(account, host, timeout)
        at = self._clock()
        token = appjwt.check(answer.raw.get_secret_value(), expected, answer.now)
        if self._keys:
            self._keys.verify(token, host, timeout)
        held = plan.hold(account.name, token, server_now=answer.now, at=at, timing=self._timing)
        return _Minted(token, answer.token_type, expected, host, held, reason, previous_used)

    def _ask(self, account: Account, host: str, timeout: timedelta) -> tuple[Answer, bool]:
        """Sentinel's answer, and whether it took the client_secret before the newest one only."""
        try:
            return self._sentinel.mint(account, host, timeout), False
        except RefreshError as error:
            if error.status not in _SECRET_REFUSED:
                raise
            before = self._accounts.previous(account)
            if before is None:
                raise
            try:
                return self._sentinel.mint(before, host, timeout), True
            except RefreshError:
                raise error from None  # the newest secret's refusal is the one to mend

    def _publish(self, name: str, started: float, minted: _Minted, stored: Stored, held: Held | None) -> Outcome:
        """Write what was minted, unless what stands ends as late; a lost race is looked at again."""
        for tries in range(_WRITE_TRIES):
            standing = self._judge_beside(minted, name, stored, held)
            if standing.token and standing.held and not plan.replaces(minted.token, standing.token):
                if tries:
                    return self._adopted(name, started, stored, standing)
                later = plan.half_of_what_is_left(standing.held, self._clock())
                standing = Standing(minted.reason, standing.token, later)
                return self._outcome(Result.UNCHANGED, name, started, stored.version, standing, minted)
            left = standing.held.life.left(self._clock()) if standing.held else None
            try:
                version = self._tokens.write(name, minted.token, minted.beside(), stored)
            except CasMismatchError:
                stored = self._tokens.read(name)
                continue
            new = Standing(minted.reason, minted.token, minted.held)
            return self._outcome(Result.REFRESHED, name, started, version, new, minted, left)
        raise RefreshError(Stage.VAULT, Kind.TRANSIENT, f"others wrote to the token of {name} {_WRITE_TRIES} times")

    def _adopted(self, name: str, started: float, stored: Stored, standing: Standing) -> Outcome:
        """The stored token stands. Where it is our own, from a write whose answer was lost, that write succeeded."""
        minted = self._unwritten.get(name)
        if minted and standing.token and standing.token.fingerprint == minted.token.fingerprint:
            return self._outcome(Result.REFRESHED, name, started, stored.version, standing, minted)
        outcome = self._outcome(Result.ADOPTED, name, started, stored.version, standing, None)
        return replace(outcome, host=stored.host)

    def _skipped(self, name: str, started: float, stored: Stored, standing: Standing, reason: Reason | None) -> Outcome:
        outcome = self._outcome(Result.SKIPPED, name, started, stored.version, standing, None)
        return replace(outcome, host=stored.host, reason=reason)

    def _outcome(
        self,
        result: Result,
        name: str,
        started: float,
        version: int,
        standing: Standing,
        minted: _Minted | None,
        left: float | None = None,
    ) -> Outcome:
        """The token that `standing` tells of stands in Vault; `minted` is where it came from, if from us."""
        self._unwritten.pop(name, None)
        return Outcome(
            account=name,
            result=result,
            duration=self._clock() - started,
            reason=minted.reason if minted else None,
            account_id=minted.expected.account_id if minted else None,
            host=minted.host if minted else None,
            token=standing.token,
            held=standing.held,
            version=version,
            left_at_replacement=left,
            previous_used=bool(minted and minted.previous_used),
        )

    def _ended(
        self,
        name: str,
        started: float,
        error: RefreshError,
        *,
        reason: Reason | None = None,
        host: str | None = None,
        held: Held | None = None,
    ) -> Outcome:
        skipped = isinstance(error, AccountDisabledError | AccountGoneError)
        if skipped:
            self._unwritten.pop(name, None)
        return Outcome(
            account=name,
            result=Result.SKIPPED if skipped else Result.FAILED,
            duration=self._clock() - started,
            reason=reason,
            host=host,
            held=held,
            error=error,
        )
