"""The promises, checked at every step against an independent truth: tokens issued and published, and times of trouble.

It knows nothing of the worker's code; all it sees are the calls that reach the fake Vault and the fake LivePerson, and
the reported outcome of each attempt.
"""

import base64
import json
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from tests.fakes.vault import TOKENS
from tests.simulation.hub import Event, Process
from tests.simulation.ownership import MANAGED_BY, Ownership
from worker.core.account import Account
from worker.core.errors import Stage
from worker.core.outcome import Outcome

if TYPE_CHECKING:
    from tests.simulation.worlds import SimWorld

BY_HAND: Final = "by hand"
"""The name of a process that refreshes by a flag."""
ALWAYS_LEFT: Final = 0.4
"""The share of life that a reader always finds, in normal running."""
_SLACK: Final = 20.0
"""Seconds for the calls of an attempt, a few of them slow, and the queue before it."""
_LEEWAY: Final = 60.0
_LONGEST_LIFE: Final = 24 * 3600
_BURST: Final = 300.0
"""Seconds in which no account is asked for more often than _MOST_IN_BURST times, by one process."""
_MOST_IN_BURST: Final = 90
"""An attempt that is refused may ask twice: with the current client_secret, and with the one before it."""
_TOO_MANY: Final = 429
_OF_VAULT: Final = (Stage.CREDENTIALS, Stage.VAULT)
_YOUNG: Final = 0.1
"""The share of its life in which no token is due, whatever the plan."""


class Recovery(Enum):
    """Time for which a fault may still affect its accounts after its end."""

    NONE = 0
    TRANSIENT = 1
    PERMANENT = 2
    UNCHANGED = 3
    """Sentinel had nothing better: asked again at half of what is left."""
    RESYNC = 4
    SYNC = 5
    EDITED = 6
    STRANGER = 7
    START = 8
    VAULT = 9
    """All of Vault was away: the next sync, 15 s later at most, sees that it is back, and wakes who waits."""


@dataclass(eq=False, slots=True)
class Window:
    """From when to when something was wrong for an account, however it was met."""

    begins: float
    ends: float
    recovery: Recovery
    what: str
    hangs: bool = False
    may_forget: bool = False
    """A token that is not written yet may be dropped: the account seemed deleted, or another token fresh."""


@dataclass(eq=False, slots=True)
class Issued:
    """A token as Sentinel handed it out."""

    account_id: str
    client_id: str
    begins: float
    """The steady moment. Sentinel's clock may be wrong, but the token's times are measured against it."""
    life: float
    iat: int
    exp: int
    skew: float
    sound: bool

    @property
    def ends(self) -> float:
        return self.begins + self.life


@dataclass(eq=False, slots=True)
class Truth:
    """The truth about one account."""

    name: str
    account_id: str
    client_id: str
    published: Issued | None = None
    """The token that a reader finds, if it is sound and of this account."""
    vanishes: float = float("inf")
    """The moment at which Vault deletes it by itself."""
    windows: list[Window] = field(default_factory=list)
    check: Event | None = None
    mints: int = 0
    allowed: float = 0.0
    """Mints beyond those of a life without trouble."""
    history: deque[str] = field(default_factory=lambda: deque(maxlen=50))
    """Its tokens."""
    since: float = 0.0
    """From when on the account was there."""

    @property
    def ends(self) -> float:
        return min(self.published.ends, self.vanishes) if self.published else 0.0


class Violation(BaseException):
    """A promise was broken."""


class Oracle:
    def __init__(self, world: "SimWorld") -> None:
        self._world = world
        self._hub = world.hub
        self.truths: dict[str, Truth] = {}
        self.violations: list[str] = []
        self.stop_at_first = True
        self.replacements: list[tuple[float, str, float]] = []
        """Each replacement of a live token: its moment, account, and the remaining share of its life."""
        self.mints: list[float] = []
        """Moments of all mints."""
        self.writes = 0
        self.exceptions: Counter[str] = Counter()
        self.owners: dict[str, Ownership] = {}
        self._ledger: dict[str, Issued] = {}
        self._pending_writes: dict[tuple[str, str], tuple[Process, str]] = {}
        self._in_flight: Counter[tuple[int, str]] = Counter()
        self._starts: defaultdict[tuple[int, str], deque[float]] = defaultdict(lambda: deque(maxlen=4096))
        self._asked: defaultdict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque([float("-inf")] * _MOST_IN_BURST, maxlen=_MOST_IN_BURST)
        )
        self._secrets: list[tuple[Process, ref[Any]]] = []

    def broken(self, promise: str, *facts: object) -> None:
        text = f"{self._world.clock() - self._world.began:.3f}s {promise}: {' '.join(map(str, facts))}"
        self.violations.append(text)
        self._world.trace("VIOLATION", text)
        if self.stop_at_first:
            raise Violation(text)

    # What reaches LivePerson

    def asks(self, process: Process | None, account: Account, host: str) -> None:
        """Record the start of a token request."""
        assert process
        now = self._hub.clock()
        if host not in self._world.liveperson.hosts.values():
            self.broken("a client secret is sent to a host that is not allowed", host)
        key = (id(process), host)
        self._in_flight[key] += 1
        # a moved account, or one with another account's ended token, has a slot of the wrong host, one last time
        lanes = 2 if self._world.hosts_mislead else 1
        if self._in_flight[key] > self._world.plan.max_in_flight * lanes:
            self.broken("more in flight at a host than the cap", host, self._in_flight[key])
        starts = self._starts[key]
        starts.append(now)
        most = (
            int(self._world.plan.max_per_second * 1.4) + 2
        )  # they set out evenly and arrive with a few ms more or less
        if len(starts) > most and now - starts[-most - 1] < 1.0:
            self.broken("more requests a second at a host than the cap", host)
        asked = self._asked[process.name, account.name]
        if now - asked[0] < _BURST:
            self.broken("a hot loop: too many requests for one account", account.name, process.name)
        asked.append(now)

    def answered(self, process: Process | None, host: str) -> None:
        self._in_flight[id(process), host] -= 1

    def issued(self, process: Process | None, raw: str, account: Account, sentinel_now: datetime) -> None:
        """Sentinel handed out a token."""
        now = self._hub.clock()
        truth = self.truths[account.name]
        known = self._ledger.get(raw)
        if known is None:
            known = self._ledger[raw] = self._examined(raw, account, sentinel_now.timestamp(), now)
            if len(truth.history) == truth.history.maxlen:
                self._ledger.pop(truth.history[0], None)
            truth.history.append(raw)
        elif abs(skew := self._skew(sentinel_now.timestamp())) >= 1:
            known.skew = skew  # the same second again, by a clock that is wrong: the very same token
        assert process
        truth.mints += known.sound
        self.mints.append(now)
        before = self._pending_writes.get((process.name, account.name))
        if before and before[0] is process:
            self._minted_again(truth, before[1], now)

    def received(self, process: Process | None, account: Account, raw: str) -> None:
        """Record that the token reached the worker."""
        assert process
        issued, stands = self._ledger[raw], self.truths[account.name].published
        if issued.sound and not (stands and stands.exp >= issued.exp):
            self._pending_writes[process.name, account.name] = (process, raw)

    def _minted_again(self, truth: Truth, raw: str, now: float) -> None:
        """Check a repeated request of a process that has a young token, which did not reach Vault."""
        had, stands = self._ledger.get(raw), truth.published
        if self._world.vaults_clock_steps:
            return  # a token due by one clock may be fresh by another, and needs no writing then
        if had is None or now - had.begins >= _YOUNG * had.life or had.client_id != truth.client_id:
            return
        if had.skew or (stands and stands.skew):
            return  # by another clock the published token may be fresh
        if stands and stands.exp >= had.exp:
            return
        if any(each.ends >= had.begins and each.may_forget for each in truth.windows):
            return
        self.broken("a token that was minted and not written is minted again", truth.name)

    def _examined(self, raw: str, account: Account, sentinel_now: float, now: float) -> Issued:
        header, claims = (json.loads(base64.urlsafe_b64decode(f"{part}==")) for part in raw.split(".")[:2])
        iat, exp = claims["iat"], claims["exp"]
        sound = (
            header["alg"] == "RS256"
            and claims["aud"] == account.account_id
            and claims["azp"] == account.client_id
            and claims["iss"].lower() == "sentinel"
            and exp > sentinel_now
            and iat <= sentinel_now + _LEEWAY
            and 0 < exp - iat <= _LONGEST_LIFE
        )
        skew = self._skew(sentinel_now)
        return Issued(account.account_id, account.client_id, now, exp - sentinel_now, iat, exp, skew, sound)

    def _skew(self, sentinel_now: float) -> float:
        return sentinel_now - self._world.clock.now().timestamp()

    # What becomes of an attempt

    def reported(self, outcome: Outcome) -> None:
        """Record the end of an attempt."""
        if outcome.error and outcome.error.status == _TOO_MANY and outcome.error.stage in _OF_VAULT:
            self.broken("a rate limit of Vault is an account's failure", outcome.account, outcome.error)

    # What reaches Vault

    def written(
        self, process: Process | None, name: str, cas: int | None, data: Mapping[str, object], version: int
    ) -> None:
        """Record new data at a token's path, before `truth` is updated."""
        truth = self.truths[name]
        if self._world.is_wanted(name):  # a Vault whose clock was set back reads what was deleted since
            self.owners[name].unwanted_since = None
        self.owners[name].written(process, data, version, self._hub.clock())
        raw = data.get("access_token")
        issued = self._ledger.get(raw) if isinstance(raw, str) else None
        if process:
            self._published(truth, cas, data, issued)
        mine = issued if issued and issued.sound and issued.account_id == truth.account_id else None
        mine = mine if mine and mine.client_id == truth.client_id else None
        self._stands(truth, mine)
        if process and process.name == BY_HAND and truth.vanishes < float("inf"):
            now = self._hub.clock()  # only its writer got the answer
            self.trouble(Window(now, now, Recovery.RESYNC, "written by hand, and deleted early"), name)
        self._world.trace("published" if process else "planted", name, mine and round(mine.ends - self._hub.clock()))

    def _published(self, truth: Truth, cas: int | None, data: Mapping[str, object], issued: Issued | None) -> None:
        now, before = self._hub.clock(), truth.published
        self.writes += 1
        if cas is None:
            self.broken("written without check-and-set", truth.name)
        if issued is None or not issued.sound:
            self.broken("an unchecked token is published", truth.name, data.get("aud"), data.get("iss"))
            return
        if (issued.account_id, issued.client_id) != (truth.account_id, truth.client_id):
            self.broken("another account's token is published", truth.name)
        if issued.ends <= now:
            self.broken("a token that has ended is published", truth.name)
        if (data["exp"], data["managed_by"]) != (str(issued.exp), MANAGED_BY):
            self.broken("what is told beside the token is not the token's", truth.name)
        if before and truth.ends > now:
            if issued is not before and issued.exp <= before.exp and not before.skew and not issued.skew:
                self.broken("a token goes backwards", truth.name, f"{before.exp - issued.exp} s")
            self.replacements.append((now, truth.name, (truth.ends - now) / before.life))
        for replica in (*self._world.names, BY_HAND):
            # even one that expires later may be dropped: its process may adopt this one
            self._pending_writes.pop((replica, truth.name), None)

    def gone(self, name: str, *, wiped: bool = False) -> None:
        """Record that the newest version of a token's path cannot be read any more."""
        self.owners[name].gone(wiped=wiped, now=self._hub.clock())
        self._stands(self.truths[name], None)

    def back(self, name: str, data: Mapping[str, object]) -> None:
        """Record that a deleted version can be read again."""
        raw, truth = data.get("access_token"), self.truths[name]
        issued = self._ledger.get(raw) if isinstance(raw, str) else None
        is_its_own = (
            issued and issued.sound and (issued.account_id, issued.client_id) == (truth.account_id, truth.client_id)
        )
        self._stands(truth, issued if is_its_own else None)

    def vaults_clock_stepped(self) -> None:
        """Look again at what was deleted: by another clock it can be read once more, or no longer."""
        for name, truth in self.truths.items():
            data = self._world.vault.kv.get(TOKENS + name).data
            if truth.published and data is None:
                now = self._hub.clock()
                self.trouble(Window(now, now, Recovery.RESYNC, "deleted, by Vault's clock again"), name)
                self._stands(truth, None)
            elif data and truth.published is None:
                self.back(name, data)

    def _stands(self, truth: Truth, issued: Issued | None) -> None:
        truth.published = issued
        truth.vanishes = self._world.vanishes(truth.name)
        self._look_again(truth, self._due(truth) if issued else self._hub.clock())

    # Whether it is fresh

    def trouble(self, window: Window, *names: str) -> None:
        """Something is wrong, for these accounts."""
        for name in names:
            truth = self.truths[name]
            truth.windows.append(window)
            truth.allowed += 14 if window.recovery is Recovery.UNCHANGED else 2

    def add(self, truth: Truth) -> None:
        truth.since = self._hub.clock()
        self.truths[truth.name] = truth
        self.owners[truth.name] = Ownership(truth.name, self.broken, self.exceptions)
        self._look_again(truth, self._hub.clock())

    def _due(self, truth: Truth) -> float:
        """Return when too little of it remains. Vault's clock may be 30 s wrong, and plans are made by it."""
        issued = truth.published
        assert issued
        clocks = 35.0 + abs(issued.skew)
        return max(min(issued.begins + (1 - ALWAYS_LEFT) * issued.life + clocks, truth.ends), issued.begins)

    def _look_again(self, truth: Truth, when: float) -> None:
        if truth.check:
            truth.check.act = None
        truth.check = self._hub.at(when, lambda: self._check(truth))

    def _check(self, truth: Truth) -> None:
        """Too little is left, or nothing: there has to be a reason."""
        now = self._hub.clock()
        until = self.explained_until(truth)
        if until > now:
            self._look_again(truth, until)
            return
        left = truth.ends - now
        text = ", ".join(f"{each.what} until {each.ends - self._world.began:.1f}" for each in truth.windows[-4:])
        what = f"late, {left:.0f} s left" if left > 0 else f"no live token since {-left if truth.published else '?'} s"
        self.broken("not renewed in time", truth.name, what, f"(trouble: {text or 'none'})")
        self._look_again(truth, now + 600.0)

    def may_be_unknown(self, name: str) -> bool:
        """Return True if it was missing lately, or all replicas that knew it, so that no sync may have found it yet."""
        together, explained = self._latest_trouble(self.truths[name])
        return explained > self._hub.clock() and any(
            each.recovery in (Recovery.SYNC, Recovery.START) for each in together
        )

    def explained_until(self, truth: Truth) -> float:
        """Return the end of the trouble that explains a lack at this moment, with the time that recovery may take."""
        return self._latest_trouble(truth)[1]

    def _latest_trouble(self, truth: Truth) -> tuple[list[Window], float]:
        """Return the latest windows that overlap, recovery included, and the moment at which all have recovered."""
        now = self._hub.clock()
        explained = reach = float("-inf")
        if len(truth.windows) > 40:
            truth.windows = [each for each in truth.windows if each.ends > now - 4 * 3600]
        together: list[Window] = []
        for window in sorted(truth.windows, key=lambda each: each.begins):
            if window.begins > now:
                break
            if window.begins > explained:
                together, reach = [], float("-inf")
            together.append(window)
            reach = max(reach, window.ends)
            explained = reach + max(self._recovery(each, truth, reach, alone=len(together) == 1) for each in together)
        return together, explained

    def _recovery(self, window: Window, truth: Truth, ended: float, *, alone: bool) -> float:  # noqa: PLR0911 - a table
        """Seconds; `ended` is when it and all that it runs together with was over, or it was `alone`."""
        plan = self._world.plan
        left = max(0.0, truth.ends - ended)
        # those that time out share a quarter of the slots, and those without a live token have every second of these
        slots = max(1, plan.max_in_flight // 4) / 2
        slack = _SLACK + (plan.accounts * 10 / slots if window.hangs else plan.accounts / plan.max_per_second)
        match window.recovery:
            case Recovery.NONE:
                return 0.0
            case Recovery.UNCHANGED:  # of a token that has ended it is a refusal
                skew = (
                    abs(truth.published.skew) if truth.published else 0.0
                )  # by Vault's clock as much more may be left
                return slack + ((left + skew) / 2 if left else 510.0)
            case Recovery.RESYNC:
                return slack + self._resync_after(ended) + (left / 4 if left else 150.0)
            case Recovery.STRANGER:  # it may not have been seen before it was taken away again
                return slack + self._resync_after(ended) + 2 * plan.sync_interval + 15.0
            case Recovery.SYNC:
                return slack + 2 * plan.sync_interval + 15.0
            case Recovery.EDITED:
                return slack + plan.sync_interval + 15.0
            case Recovery.START:
                return slack + 45.0
        pause = min(480.0, left / 4)
        if window.recovery is Recovery.VAULT and alone:
            return slack + 40.0
        if not left or window.begins <= self._world.latest_start <= ended:
            # a replica that started amid it may not have seen that a token lives
            pause = max(pause, 150.0 if window.recovery in (Recovery.TRANSIENT, Recovery.VAULT) else 510.0)
        return slack + pause

    def _resync_after(self, moment: float) -> float:
        """Return the seconds until every token was read with its account; a new process has read no account yet."""
        plan = self._world.plan
        began = min((each.began for each in self._world.running.values()), default=self._hub.clock())
        return max(0.0, began - moment) + plan.resync_interval + plan.accounts / 5

    # What is remembered

    def read(self, process: Process | None, account: Account) -> None:
        """Record that an account's secret was handed to the worker."""
        if process:
            self._secrets.append((process, ref(account.client_secret)))

    def remembers(self, process: Process) -> int:
        """Count the secrets read for this process that still exist."""
        self._secrets = [(owner, secret) for owner, secret in self._secrets if secret() is not None]
        return sum(owner is process for owner, _ in self._secrets)

    # At the end

    def too_many_mints(self) -> str | None:
        """Describe an excess of mints: more than a life without trouble and each trouble explain."""
        plan, now = self._world.plan, self._hub.clock()
        for truth in self.truths.values():
            cycles = (now - truth.since) / (0.45 * plan.life) + 2
            allowed = plan.replicas * (1.1 * cycles + truth.allowed)
            if truth.mints > allowed:
                return f"{truth.name}: {truth.mints} mints, {allowed:.0f} explained"
        return None
