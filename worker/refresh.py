"""One account's story: what is stored, why it is refreshed, and the fenced write of what was minted.

When that happens is fleet's business, what is sound is core's, where a new token comes from is mint's. What it needs of
Vault it says in the Protocols below.
"""

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

from worker.core import notes, plan
from worker.core.account import Account, is_name
from worker.core.appjwt import AppJWT, Expected
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    CasMismatchError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.outcome import Outcome, Result
from worker.core.plan import Held, Reason, Standing, Timing
from worker.core.unchecked import Stored
from worker.mint import Mint, Minted

_WRITE_TRIES = 3
_STANDBY_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Before reads at a standby of Vault, which may not know yet what was written: 0.1 s as a rule, more under load."""


class Accounts(Protocol):
    def names(self) -> frozenset[str]: ...
    def read(self, name: str) -> Account: ...


class StoredTokens(Protocol):
    def read(self, name: str) -> Stored: ...


class Tokens(StoredTokens, Protocol):
    def write(self, name: str, token: AppJWT, beside: Mapping[str, str], replaces: Stored) -> int: ...
    def settle(self, name: str, lifetime: timedelta, kept_for: timedelta) -> None: ...
    def note(self, name: str, news: Mapping[str, str | None]) -> None: ...


@dataclass(frozen=True, slots=True)
class ByHand:
    """What the operator asks for: refresh whatever the schedule says."""

    if_less_than: float = float("inf")
    """Only where less life than that is left, in seconds."""
    dry_run: bool = False
    """Only say whether, and why."""


@dataclass(slots=True)
class _Attempt:
    """How far one attempt at an account has come."""

    account: str
    started: float
    held: Held | None = None
    """What was remembered of the stored token when it became due."""
    reason: Reason | None = None
    stored: Stored | None = None
    standing: Standing = field(default_factory=lambda: Standing(None))
    minted: Minted | None = None
    left_at_replacement: float | None = None
    restored: bool = False

    def life_left(self, now: float) -> float:
        return self.standing.held.life.left(now) if self.standing.held else 0.0

    @property
    def told_host(self) -> str | None:
        """The Sentinel host that the stored token came from; beside one that is not sound nothing is believed."""
        sound = self.standing.token or self.standing.reason is Reason.DUE
        return self.stored.host if self.stored and sound else None

    def outcome(self, result: Result, now: float, error: RefreshError | None = None) -> Outcome:
        minted, stored = self.minted, self.stored
        return Outcome(
            account=self.account,
            result=result,
            duration=now - self.started,
            reason=self.reason,
            account_id=minted.expected.account_id if minted else None,
            host=error.host if error else minted.host if minted else self.told_host,
            token=self.standing.token,
            held=self.standing.held,
            version=stored.version if stored and self.standing.token else None,
            error=error,
            left_at_replacement=self.left_at_replacement,
            previous_used=bool(minted and minted.previous_used),
            restored=self.restored,
        )


class Refresher:
    def __init__(
        self,
        *,
        accounts: Accounts,
        tokens: Tokens,
        mint: Mint,
        timing: Timing,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._mint = mint
        self._timing = timing
        self._clock = clock
        self._sleep = sleep
        self._unwritten: dict[str, Minted] = {}
        """Minted, but not known to be in Vault: the next try writes them, unless they are there, or due themselves."""
        self._tried: dict[str, bytes] = {}
        """Digests of the accounts as they were at an attempt that failed: an edited one is tried at once."""
        self._key = secrets.token_bytes()

    def look(self, name: str, held: Held | None = None) -> Outcome:
        """Adopt the stored token if it is fresh, or say why it is to be refreshed.

        :param held: what is remembered of it. Credentials are read only if another token is there by now.
        """
        attempt = _Attempt(name, self._clock(), held)
        try:
            self._read_stored(attempt)
        except RefreshError as error:
            return self._ended(attempt, error)
        attempt.reason = attempt.standing.reason
        if attempt.reason:
            return attempt.outcome(Result.SKIPPED, self._clock())
        self._restore_settings(attempt)
        outcome = self._adopted(attempt)
        self._note(attempt, outcome)
        return outcome

    def refresh(self, name: str, *, held: Held | None = None, by_hand: ByHand | None = None) -> Outcome:
        """Refresh the account's token if it is due, or as the operator asks. RefreshError becomes an outcome.

        :param held: what was remembered of the stored token when it became due.
        """
        attempt = _Attempt(name, self._clock(), held, Reason.MANUAL if by_hand else None)
        try:
            outcome = self._refresh(attempt, by_hand)
        except RefreshError as error:
            outcome = self._ended(attempt, error)
        if not (by_hand and by_hand.dry_run):
            self._note(attempt, outcome)
        return outcome

    def has_changed(self, name: str) -> bool:
        """Whether a failing account's secret is another one than at its latest attempt; RefreshError."""
        tried = self._tried.get(name)
        if tried is None:
            return False
        try:
            return self._accounts.read(name).digest(self._key) != tried
        except (InvalidAccountError, AccountDisabledError, AccountGoneError):
            return True

    def is_gone(self, name: str) -> bool:
        """Whether the account's own read says so; a fault says nothing."""
        try:
            self._accounts.read(name)
        except AccountGoneError as error:
            self._note_removal(name, error)
            return True
        except InvalidAccountError:
            return not is_name(name)  # there was nothing to be read
        except RefreshError:
            pass
        return False

    def _refresh(self, attempt: _Attempt, by_hand: ByHand | None) -> Outcome:
        stored = self._read_stored(attempt)
        left = attempt.life_left(attempt.started)
        if by_hand and left >= by_hand.if_less_than:
            attempt.reason = None
            return attempt.outcome(Result.SKIPPED, self._clock())
        attempt.reason = reason = attempt.reason or attempt.standing.reason
        if reason is None:
            return self._adopted(attempt)
        account = self._accounts.read(attempt.account)
        digest, expected = account.digest(self._key), Expected.of(account)
        if not by_hand and self._tried.get(attempt.account, digest) != digest:
            attempt.reason = reason = Reason.CHANGED
        self._tried[attempt.account] = digest
        attempt.standing = self._judged(attempt, stored, expected)
        if by_hand and by_hand.dry_run:
            attempt.reason = attempt.standing.reason or attempt.reason
            return attempt.outcome(Result.SKIPPED, self._clock())
        kept = self._unwritten.get(attempt.account)
        if kept and not by_hand and kept.expected == expected and kept.held.refresh_at > attempt.started:
            attempt.minted = kept
        else:
            held = attempt.standing.held
            attempt.minted = self._unwritten[attempt.account] = self._mint.mint(account, reason, held, stored.host)
        return self._publish(attempt, attempt.minted, stored)

    def _read_stored(self, attempt: _Attempt) -> Stored:
        """Read what is stored and judge it, at first sight without the account's secret: a restart reads none."""
        stored = attempt.stored = self._tokens.read(attempt.account)
        attempt.standing = self._judged(attempt, stored, Expected())
        token, held = attempt.standing.token, attempt.held
        named_otherwise = token and attempt.account.partition("/")[0] not in token.aud
        unlike_held = token and held and (held.fingerprint != token.fingerprint or not held.compared)
        if named_otherwise or unlike_held:  # only the account's secret can say whether that is right
            account = self._accounts.read(attempt.account)
            attempt.standing = self._judged(attempt, stored, Expected.of(account))
        return stored

    def _judged(self, attempt: _Attempt, stored: Stored, expected: Expected) -> Standing:
        seen, raw = attempt.standing.token, stored.raw.get_secret_value() if stored.raw else None
        return plan.judge(
            attempt.account,
            seen if seen and seen.raw.get_secret_value() == raw else raw,
            expected,
            server_now=stored.now,
            at=self._clock(),
            timing=self._timing,
            held=attempt.held,
        )

    def _publish(self, attempt: _Attempt, minted: Minted, stored: Stored) -> Outcome:
        """Write what was minted, unless what stands ends as late; a lost race is looked at again."""
        for tries in range(_WRITE_TRIES):
            now = self._clock()
            standing = self._standing_beside(minted, attempt, stored, now)
            attempt.stored, attempt.standing = stored, standing
            if standing.token and standing.held and not plan.replaces(minted.token, standing.token):
                if tries:
                    return self._adopted(attempt)
                attempt.standing = replace(standing, held=plan.half_of_what_is_left(standing.held, now))
                return self._settled(attempt, Result.UNCHANGED)
            attempt.left_at_replacement = standing.held.life.left(now) if standing.held else None
            try:
                version = self._tokens.write(attempt.account, minted.token, minted.beside(), stored)
            except CasMismatchError:
                stored = self._read_newer(attempt.account, stored)
                continue
            attempt.stored = replace(stored, version=version)
            attempt.standing = Standing(None, minted.token, minted.held)
            return self._settled(attempt, Result.REFRESHED)
        text = f"others wrote to the token of {attempt.account} {_WRITE_TRIES} times"
        raise RefreshError(Stage.VAULT, Kind.TRANSIENT, text)

    def _read_newer(self, name: str, than: Stored) -> Stored:
        """What others wrote: Vault said that it is there, but a standby may answer the read without it."""
        for pause in _STANDBY_PAUSES:
            self._sleep(pause)
            stored = self._tokens.read(name)
            if stored.version > than.version:
                return stored
        text = f"the token of {name} has a newer version than Vault lets us read: does a standby of it lag behind?"
        raise RefreshError(Stage.VAULT, Kind.TRANSIENT, text)

    def _standing_beside(self, minted: Minted, attempt: _Attempt, stored: Stored, now: float) -> Standing:
        """What stands by Vault's clock or by Sentinel's: when one of them is wrong, no living token may be lost."""
        sentinel_now = minted.token.exp - timedelta(seconds=minted.held.life.left(now))
        # one that remembers nothing of its life, so that times are compared
        anew = _Attempt(attempt.account, now, standing=Standing(None, attempt.standing.token))
        standing = self._judged(anew, stored, minted.expected)
        if standing.token is None:
            standing = self._judged(anew, replace(stored, now=sentinel_now), minted.expected)
        held = attempt.held
        if held and standing.held and held.fingerprint == standing.held.fingerprint:
            return replace(standing, held=held)  # it is planned already
        return standing

    def _adopted(self, attempt: _Attempt) -> Outcome:
        """The stored token stands. Where it is our own, from a write whose answer was lost, that write succeeded."""
        kept, token = self._unwritten.get(attempt.account), attempt.standing.token
        if kept and token and token.fingerprint == kept.token.fingerprint:
            attempt.minted, attempt.reason = kept, kept.reason
            return self._settled(attempt, Result.REFRESHED)
        attempt.minted = attempt.reason = attempt.left_at_replacement = None
        return self._settled(attempt, Result.ADOPTED)

    def _settled(self, attempt: _Attempt, result: Result) -> Outcome:
        """What stands in Vault is known: nothing is left to be written."""
        self._forget(attempt.account)
        return attempt.outcome(result, self._clock())

    def _ended(self, attempt: _Attempt, error: RefreshError) -> Outcome:
        if isinstance(error, AccountDisabledError | AccountGoneError):
            self._forget(attempt.account)
            attempt.reason = None  # there is nothing to be done
            return attempt.outcome(Result.SKIPPED, self._clock(), error)
        return attempt.outcome(Result.FAILED, self._clock(), error)

    def _forget(self, name: str) -> None:
        self._unwritten.pop(name, None)
        self._tried.pop(name, None)

    def _restore_settings(self, attempt: _Attempt) -> None:
        """Without our mark in the metadata the path would be a stranger's once its newest version is deleted."""
        stored, token = attempt.stored, attempt.standing.token
        if stored and token and not stored.marked:
            with contextlib.suppress(RefreshError):  # the token stands all the same; the next look tries again
                self._tokens.settle(attempt.account, token.lifetime, stored.kept_for)
                attempt.restored = True

    def _note_removal(self, name: str, error: AccountGoneError) -> None:
        """Were it to come back, what was said of it before would stand there as if it were new."""
        attempt = _Attempt(name, self._clock())
        with contextlib.suppress(RefreshError):
            attempt.stored = self._tokens.read(name)
        self._note(attempt, self._ended(attempt, error))

    def _note(self, attempt: _Attempt, outcome: Outcome) -> None:
        stored = attempt.stored
        news = notes.news(outcome, stored.notes, stored.now) if stored else None
        if news:
            with contextlib.suppress(RefreshError):  # the next attempt sees that it is not told yet
                self._tokens.note(attempt.account, news)
