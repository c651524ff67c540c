"""All faults: a table of kinds, each with a begin, an end and the accounts it touches, and the code that acts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, StrEnum
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from sandbox.faults import Fault, Faults, Service
from tests.fakes.vault import ACCOUNTS, HEALTHY, TOKENS, KvEngine, VaultFault
from tests.simulation.oracle import BY_HAND, Recovery, Window
from tests.simulation.ownership import LONGEST_ATTEMPT, MANAGED_BY
from worker.core.plan import RETRY_PAUSES

if TYPE_CHECKING:
    from tests.simulation.worlds import SimWorld

MINUTE: Final = 60.0
EVERYWHERE: Final = "everywhere"
_READS: Final = frozenset({"read_account", "read_token"})
_EVERY: Final = frozenset({"list", "read_account", "read_token", "write_metadata", "write_token"})


class Kind(StrEnum):
    """Kinds of fault. The values are their names in the report."""

    HOST_REFUSES = "Sentinel host: connection refused"
    HOST_HANGS = "Sentinel host: never answers"
    HOST_HANGS_FOR_SOME = "Sentinel host: never answers for some accounts"
    HOST_SLOW = "Sentinel host: slow"
    HOST_503 = "Sentinel host: 503"
    HOST_429 = "Sentinel host: 429 with Retry-After"
    HOST_403 = "Sentinel host: 403 for all"
    HOST_CUT = "Sentinel host: answers are cut"
    HOST_NO_DATE = "Sentinel host: no Date"
    HOST_SKEWED = "Sentinel host: its clock is wrong"
    SECRET_WRONG = "account: 401 until the right secret is in Vault"
    ACCOUNT_500 = "account: 500"
    WRONG_AUD = "answer: another account's aud"
    WRONG_AZP = "answer: another app's azp"
    WRONG_ISS = "answer: wrong iss"
    WRONG_ALG = "answer: wrong alg"
    ENDED = "answer: exp in the past"
    SAME_TOKEN = "answer: the same token again"
    SHORTER = "answer: a token that ends earlier"
    DOMAIN_DOWN = "Domain API: 503"
    DOMAIN_HANGS = "Domain API: never answers"
    DOMAIN_EVIL = "Domain API: a host outside the allow list"
    MOVED = "account moves to another host"
    VAULT_REFUSES = "Vault: connection refused"
    VAULT_HANGS = "Vault: never answers"
    VAULT_SEALED = "Vault: sealed"
    VAULT_429 = "Vault: 429 of a rate limit"
    LOGIN_ENDED = "Vault: a replica's login has ended"
    DENIED_LIST = "policy: list taken away"
    DENIED_READ_ACCOUNT = "policy: read_account taken away"
    DENIED_READ_TOKEN = "policy: read_token taken away"
    DENIED_WRITE_TOKEN = "policy: write_token taken away"
    DENIED_WRITE_METADATA = "policy: write_metadata taken away"
    WRITE_DONE = "write: done, and its answer lost"
    WRITE_NOT_DONE = "write: not done, and no answer"
    METADATA_DONE = "metadata write: done, and its answer lost"
    METADATA_NOT_DONE = "metadata write: not done, and no answer"
    STALE = "read: up to 110 ms old"
    VERY_STALE = "read: up to 2 s old"
    LIST_INCOMPLETE = "LIST leaves some out"
    PATH_5XX = "Vault: 500 for one token path"
    VAULT_SKEWED = "Vault's clock is up to 30 s wrong"
    VAULT_HOURS_OFF = "Vault's clock is hours wrong"
    TOKEN_DELETED = "stored token deleted"
    TOKEN_DESTROYED = "stored token destroyed"
    METADATA_DELETED = "metadata of the token path deleted"
    OLDER_TOKEN = "an older token put back"
    RUBBISH = "rubbish with our mark in the token path"
    CROSSED = "another account's token in the token path"
    PLANTED_EXP = "exp of 2099 beside an older token"
    MARK_WIPED = "custom_metadata wiped"
    EARLY_DELETION = "delete_version_after set by the owner"
    UNDELETED = "an older version of the token undeleted"
    STRANGER_NEW = "stranger at a new path"
    STRANGER_AMID = "stranger at a new path, amid a token request"
    STRANGER_UNMARKED = "stranger at a path whose mark was removed"
    STRANGER_MARKED = "stranger at a marked path"
    STRANGER_DISABLED = "stranger at the path of a disabled account"
    SECRET_EDITED = "client_secret rotated"
    SECRET_EARLY = "client_secret rotated in Vault before LivePerson"
    DISABLED = "account disabled, later enabled"
    DELETED = "account deleted, later restored"
    REMOVED = "account removed, later added anew"
    INVALID = "account made invalid, later mended"
    WALL_STEPPED = "the replicas' wall clocks stepped, by a day and less"
    PAUSED = "replica paused"
    CRASH = "replica crashes, and is back"
    RESTART = "replica restarted"
    MANUAL_ONE = "--refresh of one"
    MANUAL_ALL = "--refresh-all"
    MANUAL_IF = "--refresh-all --expires-within"


class Target(Enum):
    ACCOUNT = "account"
    HOST = "host"
    ALL = "all"
    REPLICA = "replica"


@dataclass(eq=False)
class Episode:
    """One fault, from its begin to its end."""

    kind: Kind
    window: Window
    name: str | None = None
    host: str | None = None
    replica: str | None = None
    touches: frozenset[str] = frozenset()
    ids: frozenset[str] | None = None
    """account_ids of those it touches, where it is about some only."""
    on: bool = True
    end: Callable[[], object] = lambda: None
    trap: tuple[frozenset[str], str] | None = None
    """Operations on this account that meet it."""


Begin = Callable[["Trouble", Episode], bool]


@dataclass(frozen=True)
class Spec:
    target: Target
    recovery: Recovery
    begin: Begin
    """False = not possible now."""
    longest: float = 40 * MINUTE
    hangs: bool = False

    @property
    def is_wide(self) -> bool:
        """Return True if it touches many accounts, and for long."""
        return self.target in (Target.HOST, Target.ALL) and self.longest > MINUTE


class SentinelFaults(Faults):
    """Faults as the fake LivePerson asks for them; those of the episodes in force."""

    def __init__(self, trouble: "Trouble") -> None:
        super().__init__()
        self._trouble = trouble

    def take(self, service: Service, account: str, host: str) -> Fault:
        for episode, which, make in self._trouble.liveperson:
            if (
                which == ("sentinel" if service == "clock" else service)
                and (episode.host is None or episode.host == host)
                and (episode.ids is None or account in episode.ids)
            ):
                self._trouble.meet(episode)
                return make()
        return super().take(service, account, host)


class Trouble:
    """The faults in force in one world, and how often each kind was met."""

    def __init__(self, world: "SimWorld") -> None:
        self.world = world
        self.random: Random = world.fault_random
        self.met: Counter[Kind] = Counter()
        self.started: Counter[Kind] = Counter()
        self.liveperson: list[tuple[Episode, Service, Callable[[], Fault]]] = []
        self.vault: list[tuple[Episode, frozenset[str], Callable[[], VaultFault | None]]] = []
        self.traps: defaultdict[tuple[str, str], list[Episode]] = defaultdict(list)
        self.on_mint: dict[str, Callable[[], object]] = {}
        """Acts that follow the next token request of this account."""
        self.busy: dict[str, Episode] = {}
        """Accounts and replicas that have an episode of their own; one at a time."""
        world.liveperson.faults = SentinelFaults(self)
        world.vault.fault = self.of_vault

    def meet(self, episode: Episode) -> None:
        self.met[episode.kind] += 1

    def of_vault(self, operation: str, name: str) -> VaultFault:
        process = self.world.hub.process
        for episode, operations, make in self.vault:
            if (
                operation in operations
                and (episode.name is None or episode.name == name)
                and (episode.replica is None or (process and process.name == episode.replica))
                and (fault := make())
            ):
                self.meet(episode)
                return fault
        return HEALTHY

    def spring(self, operation: str, name: str) -> None:
        """Apply the traps for an attempt at this operation."""
        if operation == "sentinel" and name in self.on_mint:
            hub = self.world.hub
            process, hub.process = hub.process, None  # as an act of the operator
            self.on_mint.pop(name)()
            hub.process = process
        for episode in list(self.traps.get((operation, name), ())):
            self.meet(episode)
            if episode.kind is Kind.MOVED:
                self.over(episode)  # noticed; from now on it is a matter of trying again

    # Begin and end

    def begin(self, kind: Kind, *, length: float | None = None, target: str | None = None) -> Episode | None:
        """Let it begin, for so long; None = not possible now.

        :param target: account, host or EVERYWHERE, or replica; None = chosen at random.
        """
        spec, world, random = SPECS[kind], self.world, self.random
        now = world.clock()
        self.started[kind] += 1
        if kind is Kind.MOVED:
            length = world.plan.life
        length = length if length is not None else min(spec.longest, 2.0 + random.expovariate(1 / (spec.longest / 3)))
        forgets = spec.recovery in (Recovery.SYNC, Recovery.STRANGER) or kind in _READS_OLD
        window = Window(now, now + length, spec.recovery, kind, spec.hangs, forgets)
        episode = Episode(kind, window)
        truths = world.oracle.truths
        match spec.target:
            case Target.ACCOUNT:
                free = [name for name in truths if name not in self.busy]
                if not free:
                    return None
                episode.name = target or random.choice(free)
                account_id = truths[episode.name].account_id
                # accounts that share the id at LivePerson share its troubles there
                episode.touches = frozenset(name for name, each in truths.items() if each.account_id == account_id)
                episode.ids = frozenset({account_id})
            case Target.HOST:
                hosts = list(world.liveperson.hosts.values())
                episode.host = target or (EVERYWHERE if random.random() < 0.25 else random.choice(hosts))
                episode.host = None if episode.host == EVERYWHERE else episode.host
                episode.touches = frozenset(
                    name for name in truths if episode.host is None or world.host_of(name) == episode.host
                )
            case Target.REPLICA:
                episode.replica = target or random.choice(list(world.names))
            case Target.ALL:
                episode.touches = frozenset(truths)
        own = episode.name or episode.replica
        if (own in self.busy) or not spec.begin(self, episode):
            return None
        if own:
            self.busy[own] = episode
        world.trace("begins", kind, own or episode.host or "all", f"for {length:.1f} s")
        if spec.recovery is not Recovery.NONE:
            world.oracle.trouble(window, *sorted(episode.touches))
        world.hub.at(window.ends, partial(self.over, episode))
        return episode

    def over(self, episode: Episode) -> None:
        if not episode.on:
            return
        episode.on = False
        self.world.trace("ends", episode.kind, episode.name or episode.replica or episode.host or "all")
        episode.window.ends = self.world.clock()
        episode.end()
        self.liveperson = [each for each in self.liveperson if each[0] is not episode]
        self.vault = [each for each in self.vault if each[0] is not episode]
        if episode.trap:
            for operation in episode.trap[0]:
                self.traps[operation, episode.trap[1]].remove(episode)
        own = episode.name or episode.replica
        self.on_mint.pop(episode.name or "", None)
        if own and self.busy.get(own) is episode:
            del self.busy[own]

    def set_trap(self, episode: Episode, *operations: str) -> None:
        assert episode.name
        episode.trap = (frozenset(operations), episode.name)
        for operation in operations:
            self.traps[operation, episode.name].append(episode)

    def rewritten(self, name: str) -> None:
        """Clear the fault of an account whose planted token the worker has overwritten."""
        episode = self.busy.get(name)
        if episode and episode.kind in _TAMPERED:
            self.over(episode)


# What the kinds do


def _sentinel(make: Callable[["Trouble"], Fault], service: Service = "sentinel") -> Begin:
    def begin(trouble: Trouble, episode: Episode) -> bool:
        fault = make(trouble)
        trouble.liveperson.append((episode, service, lambda: fault))
        return True

    return begin


def _hang_for_some(trouble: "Trouble", episode: Episode) -> bool:
    """Hang for some of the host's accounts; the others must not notice."""
    truths, random = trouble.world.oracle.truths, trouble.random
    ids = sorted({truths[name].account_id for name in episode.touches})
    if not ids:
        return False
    sick = max(1, round(random.uniform(*trouble.world.plan.sick) * len(ids)))
    episode.ids = frozenset(random.sample(ids, sick))
    episode.touches = frozenset(name for name in episode.touches if truths[name].account_id in episode.ids)
    trouble.liveperson.append((episode, "sentinel", lambda: Fault(hang=True)))
    return True


def _claims(claims: Callable[["Trouble"], Mapping[str, object]]) -> Begin:
    """Claims that are made at each answer."""

    def begin(trouble: Trouble, episode: Episode) -> bool:
        trouble.liveperson.append((episode, "sentinel", lambda: Fault(claims=claims(trouble))))
        return True

    return begin


def _vault(make: Callable[["Trouble"], VaultFault], operations: frozenset[str] = _EVERY) -> Begin:
    def begin(trouble: Trouble, episode: Episode) -> bool:
        trouble.vault.append((episode, operations, lambda: make(trouble)))
        return True

    return begin


def _denied(operation: str) -> Spec:
    make = _vault(lambda _: VaultFault(status=403), frozenset({operation}))
    recovery = Recovery.NONE if operation == "write_metadata" else Recovery.PERMANENT
    return Spec(Target.ALL, recovery, make)


def _unix(trouble: Trouble, ahead: float) -> int:
    return int(trouble.world.clock.now().timestamp() + ahead)


def _skew_sentinel(trouble: Trouble, episode: Episode) -> bool:
    skew = timedelta(seconds=trouble.random.uniform(-300, 300))
    trouble.liveperson.append((episode, "sentinel", lambda: Fault(skew=skew)))
    return True


_LONG_WAIT: Final = 3600
"""Seconds of Retry-After: longer than the worker waits."""


def _limit_rate(trouble: Trouble, episode: Episode) -> bool:
    """Let so many requests pass in each second, or none at all."""
    clock, quota = trouble.world.clock, trouble.random.choice((0, 1, 5, 20))
    wait = trouble.random.choice((None, 1, 30, _LONG_WAIT))
    refusal = VaultFault(status=429, retry_after=None if wait is None else timedelta(seconds=wait))
    passed: Counter[int] = Counter()

    def make() -> VaultFault | None:
        second = int(clock())
        if passed[second] >= quota:
            return refusal
        passed[second] += 1
        return None

    trouble.vault.append((episode, _EVERY, make))
    if wait == _LONG_WAIT:

        def end() -> None:
            """Let a replica without any known token, after a start, wait as long as it was asked to."""
            for replica in trouble.world.running:
                trouble.world.mark_impaired(replica, "throttled")
                trouble.world.heal(replica, "throttled", RETRY_PAUSES[-1].total_seconds())

        episode.end = end
    return True


def _skew_vault(trouble: Trouble, episode: Episode) -> bool:
    vault, largest = trouble.world.vault, 30.0 if episode.kind is Kind.VAULT_SKEWED else 300 * MINUTE
    if vault.skew:
        return False
    vault.skew = timedelta(seconds=trouble.random.uniform(-largest, largest))
    trouble.world.oracle.vaults_clock_stepped()
    trouble.vault.append((episode, frozenset(), lambda: HEALTHY))

    def end() -> None:
        vault.skew = timedelta()
        trouble.world.oracle.vaults_clock_stepped()
        trouble.world.skewed = None

    episode.end = end
    trouble.world.skewed = episode
    return True


def _leave_out(trouble: Trouble, episode: Episode) -> bool:
    vault = trouble.world.vault
    if vault.unlisted:
        return False
    names = sorted(episode.touches)
    vault.unlisted = set(trouble.random.sample(names, trouble.random.randint(1, len(names))))
    trouble.vault.append((episode, frozenset({"list"}), lambda: HEALTHY))
    trouble.world.incomplete = episode
    trouble.world.unseen(*filter(trouble.world.oracle.may_be_unknown, sorted(vault.unlisted)))

    def end() -> None:
        vault.unlisted.clear()
        trouble.world.incomplete = None

    episode.end = end
    return True


def _move(trouble: Trouble, episode: Episode) -> bool:
    world = trouble.world
    account_id = world.oracle.truths[str(episode.name)].account_id
    here = world.host_of(str(episode.name))
    elsewhere = [region for region, host in world.liveperson.hosts.items() if host != here]
    if not elsewhere:
        return False
    world.liveperson.move(account_id, trouble.random.choice(elsewhere))
    for other, _, _ in trouble.liveperson:  # the faults of the old and the new host apply to it
        if other.host:
            world.oracle.trouble(other.window, *sorted(episode.touches))
    trouble.set_trap(episode, "sentinel")
    return True


def _rotate(trouble: Trouble, episode: Episode, *, at_once: bool) -> bool:
    world, name = trouble.world, str(episode.name)
    episode.touches = frozenset({name})
    truth = world.oracle.truths[name]
    tell = partial(world.write_account, name, world.liveperson.rotate(truth.account_id, truth.client_id))
    if at_once:
        tell()
    else:
        episode.end = tell
    trouble.set_trap(episode, "sentinel")
    return True


def _change_account(change: Callable[["SimWorld", str], object]) -> Begin:
    def begin(trouble: Trouble, episode: Episode) -> bool:
        world, name = trouble.world, str(episode.name)
        episode.touches = frozenset({name})
        before = world.account_data(name)
        change(world, name)
        owner = world.oracle.owners[name]
        owner.unwanted_since = world.clock() if change in _UNWANTED else None

        def end() -> None:
            owner.unwanted_since = None
            world.vault.kv.put(ACCOUNTS + name, before)
            world.unseen(name)

        episode.end = end
        trouble.set_trap(episode, "read_account")
        return True

    return begin


def _disable(world: "SimWorld", name: str) -> None:
    world.vault.kv.put(ACCOUNTS + name, {**world.account_data(name), "enabled": "false"})


def _delete(world: "SimWorld", name: str) -> None:
    world.vault.kv.delete(ACCOUNTS + name)


def _remove(world: "SimWorld", name: str) -> None:
    world.vault.kv.remove(ACCOUNTS + name)


def _spoil(world: "SimWorld", name: str) -> None:
    world.vault.kv.put(ACCOUNTS + name, {"client_id": "", "note": "to be mended"})


def _tamper(change: Callable[[Trouble, str], bool | None]) -> Begin:
    """Change what is stored; it is over when the worker has put a token there."""

    def begin(trouble: Trouble, episode: Episode) -> bool:
        name = str(episode.name)
        episode.touches = frozenset({name})
        truth = trouble.world.oracle.truths[name]
        owner = trouble.world.oracle.owners[name]
        if not truth.published or owner.is_strangers or change(trouble, TOKENS + name) is False:
            return False
        trouble.set_trap(episode, "read_token")
        return True

    return begin


def _older(trouble: Trouble, path: str, **fields: object) -> bool:
    world = trouble.world
    name = path.removeprefix(TOKENS)
    history, newest = world.oracle.truths[name].history, world.data(name)
    if len(history) < 3 or not newest:
        return False
    data = {**newest, "access_token": trouble.random.choice(list(history)[:-1]), **fields}
    world.vault.kv.put(path, data)
    return True


def _wipe_mark(trouble: Trouble, path: str) -> bool:
    """Remove our mark; not where our data is deleted, too: the path would then have no sign of its owner."""
    kv = trouble.world.vault.kv
    if kv.get(path).data is None:
        return False
    kv.set_metadata(path, custom_metadata={"managed_by": None})
    return True


def _undelete(trouble: Trouble, path: str) -> bool:
    """Delete the newest version; undelete it a moment later, when the worker may have replaced it."""
    kv = trouble.world.vault.kv
    if not _is_marked(kv, path):
        return False
    kv.delete(path)
    number = kv.get(path).number

    def undelete() -> None:
        if kv.get(path).number == number:
            kv.undelete(path)

    trouble.world.hub.after(trouble.random.uniform(1, 600), undelete)
    return True


def _delete_early(trouble: Trouble, episode: Episode) -> bool:
    """Set a delete_version_after shorter than the lifetime: a version is deleted after two minutes."""
    name = str(episode.name)
    path, kv = TOKENS + name, trouble.world.vault.kv
    episode.touches = frozenset({name})
    truth = trouble.world.oracle.truths[name]
    if not truth.published or not _is_marked(kv, path):
        return False
    kv.set_metadata(path, delete_version_after=timedelta(seconds=2 * MINUTE))
    truth.allowed += (episode.window.ends - episode.window.begins) / 20.0 + 4  # it is refreshed as often as it takes
    if trouble.world.plan.replicas > 1:  # a replica that stops leaves a token whose deletion the others do not know
        window = episode.window
        trouble.world.oracle.trouble(Window(window.begins, window.ends, Recovery.RESYNC, window.what), name)

    def end() -> None:
        if kv.metadata(path):
            kv.set_metadata(path, delete_version_after=timedelta(0))

    episode.end = end
    trouble.set_trap(episode, "write_token")
    return True


def _foreign_token(trouble: Trouble, path: str) -> bool:
    truths = trouble.world.oracle.truths
    account_id = truths[path.removeprefix(TOKENS)].account_id
    others = [name for name, each in truths.items() if each.published and each.account_id != account_id]
    if not others:
        return False
    data = trouble.world.data(trouble.random.choice(others))
    if data:  # it may be deleted by now
        trouble.world.vault.kv.put(path, data)
    return bool(data)


def _while_marked(take_away: Callable[[KvEngine, str], None]) -> Callable[[Trouble, str], bool]:
    """Tamper only where our mark is present: without it, the rest would not be ours by any sign."""

    def tamper(trouble: Trouble, path: str) -> bool:
        kv = trouble.world.vault.kv
        marked = _is_marked(kv, path)
        if marked:
            take_away(kv, path)
        return marked

    return tamper


def _is_marked(kv: KvEngine, path: str) -> bool:
    metadata = kv.metadata(path)
    return metadata is not None and metadata.custom_metadata.get("managed_by") == MANAGED_BY


def _put_theirs(trouble: Trouble, name: str, *, wipe: bool, read: int | None = None) -> None:
    """Somebody writes a secret of their own to a token's path.

    :param wipe: first the path is wiped with its metadata.
    :param read: a version that an attempt under way may have read: the same number again no check-and-set could tell.
    """
    world, path = trouble.world, TOKENS + name
    kv = world.vault.kv
    known = (read, world.version(name))
    if wipe:
        kv.remove(path)
    while kv.put(path, {"password": "theirs"}) in known and wipe:
        pass


def _meddle(trouble: Trouble, episode: Episode) -> None:
    """Strangers go on: they delete, undelete, destroy and rewrite their secret while it is theirs."""
    name = str(episode.name)
    kv, owner = trouble.world.vault.kv, trouble.world.oracle.owners[name]
    if episode.on and owner.stranger and owner.stranger.protected:
        act = trouble.random.choice((kv.delete, kv.undelete, kv.destroy, partial(kv.put, data={"password": "newer"})))
        act(TOKENS + name)
        trouble.world.hub.after(trouble.random.uniform(10, 300), partial(_meddle, trouble, episode))


def _stranger(trouble: Trouble, episode: Episode, *, wipe: bool, read: int | None = None) -> None:
    """Somebody takes a path for a secret of their own; later they hand it over, or take it away."""
    world, name = trouble.world, str(episode.name)
    path, kv, owner = TOKENS + name, world.vault.kv, world.oracle.owners[name]
    since = world.clock()
    if not wipe:
        kv.set_metadata(path, custom_metadata={"managed_by": None})
    _put_theirs(trouble, name, wipe=wipe, read=read)
    world.hub.after(trouble.random.uniform(10, 300), partial(_meddle, trouble, episode))
    trouble.set_trap(episode, "read_token")

    def end() -> None:
        if not world.was_down(since):
            # a failing account's path is read again at its next attempt
            within = RETRY_PAUSES[-1].total_seconds() + LONGEST_ATTEMPT
            if owner.status_writer == BY_HAND:  # for the replicas it does not fail: they see it at a resync
                within += world.plan.resync_interval + world.plan.accounts / 5
            owner.still_broken(world.clock(), within=within)
        if trouble.random.random() < 0.5 and world.clock() - since > MINUTE and owner.is_strangers:
            kv.set_metadata(path, custom_metadata={"managed_by": MANAGED_BY})
        else:
            kv.remove(path)

    episode.end = end


def _take_path(trouble: Trouble, episode: Episode, *, wipe: bool) -> bool:
    name = str(episode.name)
    episode.touches = frozenset({name})
    if not wipe and not _is_marked(trouble.world.vault.kv, TOKENS + name):
        return False
    _stranger(trouble, episode, wipe=wipe)
    return True


def _take_path_amid(trouble: Trouble, episode: Episode) -> bool:
    """Do the same while a first token is on its way there."""
    name = str(episode.name)
    episode.touches = frozenset({name})
    read = trouble.world.version(name)
    if trouble.random.random() < 0.7:
        trouble.world.vault.kv.remove(TOKENS + name)
    trouble.on_mint[name] = partial(_stranger, trouble, episode, wipe=True, read=read)
    return True


def _take_marked_path(trouble: Trouble, path: str) -> bool:
    kv = trouble.world.vault.kv
    return _is_marked(kv, path) and bool(kv.put(path, {"password": "theirs"}))


def _take_path_of_disabled(world: "SimWorld", name: str) -> None:
    _disable(world, name)
    owner = world.oracle.owners[name]

    def put() -> None:
        if owner.unwanted_since is not None and owner.marked:
            world.vault.kv.put(TOKENS + name, {"password": "theirs"})

    world.hub.after(LONGEST_ATTEMPT + 10.0, put)


def _rotate_early(trouble: Trouble, episode: Episode) -> bool:
    """Vault has the new client_secret; LivePerson takes the old one until the end."""
    world, name = trouble.world, str(episode.name)
    episode.touches = frozenset({name})
    truth = world.oracle.truths[name]
    coming = world.liveperson.prepare(truth.client_id)
    world.write_account(name, coming)
    episode.end = lambda: world.liveperson.accept(truth.account_id, coming)
    trouble.set_trap(episode, "sentinel")
    return True


def _step_wall(trouble: Trouble, episode: Episode) -> bool:
    world = trouble.world
    step = trouble.random.choice((-86400.0, -3600.0, 90.0, 86400.0))
    world.wall_offset += step
    trouble.met[episode.kind] += 1

    def end() -> None:
        world.wall_offset -= step

    episode.end = end
    return True


def _pause(trouble: Trouble, episode: Episode) -> bool:
    process = trouble.world.running.get(str(episode.replica))
    if not process:
        return False
    process.paused_until = episode.window.ends
    process.postponed = 0
    trouble.world.mark_impaired(str(episode.replica), "paused")

    def end() -> None:
        trouble.met[episode.kind] += process.postponed
        trouble.world.heal(str(episode.replica), "paused", 60.0)

    episode.end = end
    return True


def _end_login(trouble: Trouble, episode: Episode) -> bool:
    trouble.vault.append((episode, _EVERY, lambda: VaultFault(status=403)))
    trouble.world.mark_impaired(str(episode.replica), "login")
    episode.end = lambda: trouble.world.heal(str(episode.replica), "login", 540.0)
    return True


def _crash(trouble: Trouble, episode: Episode) -> bool:
    world, replica = trouble.world, str(episode.replica)
    if replica not in world.running:
        return False
    rare = [4 if operation in ("domain", "write_metadata") else 1 for operation, _ in CRASH_POINTS]
    world.crash_at[replica] = trouble.random.choices(CRASH_POINTS, rare)[0]
    world.on_crash[replica] = partial(trouble.meet, episode)

    def end() -> None:
        world.crash_at.pop(replica, None)
        world.on_crash.pop(replica, None)

    episode.end = end
    return True


CRASH_POINTS: Final = [
    (operation, when)
    for operation in ("list", "read_account", "read_token", "write_metadata", "write_token", "domain", "sentinel")
    for when in ("before", "after")
]


def _restart(trouble: Trouble, episode: Episode) -> bool:
    replica = str(episode.replica)
    if replica not in trouble.world.running:
        return False
    trouble.world.stop(replica, back_in=episode.window.ends - episode.window.begins)
    trouble.meet(episode)
    return True


def _manual(**options: Any) -> Begin:
    def begin(trouble: Trouble, episode: Episode) -> bool:
        names = [episode.name] if episode.name else sorted(episode.touches)
        episode.touches = frozenset()
        trouble.world.manual(names, named=bool(episode.name), met=lambda: trouble.meet(episode), **options)
        return True

    return begin


_UNWANTED: Final = (_disable, _delete, _remove, _take_path_of_disabled)
_WRITES: Final = frozenset({"write_token", "write_metadata"})
_METADATA: Final = frozenset({"write_metadata"})
_T, _L, _U, _S, _N = (
    Recovery.TRANSIENT,
    Recovery.PERMANENT,
    Recovery.UNCHANGED,
    Recovery.RESYNC,
    Recovery.NONE,
)
_A, _H, _ALL, _R = Target.ACCOUNT, Target.HOST, Target.ALL, Target.REPLICA

SPECS: Final[dict[Kind, Spec]] = {
    Kind.HOST_REFUSES: Spec(_H, _T, _sentinel(lambda _: Fault(refuse=True))),
    Kind.HOST_HANGS: Spec(_H, _T, _sentinel(lambda _: Fault(hang=True)), hangs=True),
    Kind.HOST_HANGS_FOR_SOME: Spec(_H, _T, _hang_for_some, hangs=True),
    Kind.HOST_SLOW: Spec(_H, _T, _sentinel(lambda t: Fault(delay=t.random.uniform(1, 12))), hangs=True),
    Kind.HOST_503: Spec(_H, _T, _sentinel(lambda _: Fault(status=503))),
    Kind.HOST_429: Spec(
        _H,
        _T,
        _sentinel(lambda t: Fault(status=429, headers={"Retry-After": str(t.random.choice((1, 5, 30, 120)))})),
    ),
    Kind.HOST_403: Spec(_H, _L, _sentinel(lambda _: Fault(status=403))),
    Kind.HOST_CUT: Spec(_H, _T, _sentinel(lambda _: Fault(cut=True)), 10 * MINUTE),
    Kind.HOST_NO_DATE: Spec(_H, _N, _sentinel(lambda _: Fault(no_date=True))),
    Kind.HOST_SKEWED: Spec(_H, _U, _skew_sentinel),
    Kind.SECRET_WRONG: Spec(_A, Recovery.EDITED, partial(_rotate, at_once=False)),
    Kind.ACCOUNT_500: Spec(_A, _T, _sentinel(lambda _: Fault(status=500))),
    Kind.WRONG_AUD: Spec(_A, _L, _claims(lambda _: {"aud": "le-other"})),
    Kind.WRONG_AZP: Spec(_A, _L, _claims(lambda _: {"azp": "other"})),
    Kind.WRONG_ISS: Spec(_A, _L, _claims(lambda _: {"iss": "somebody"})),
    Kind.WRONG_ALG: Spec(_A, _L, _sentinel(lambda _: Fault(header={"alg": "none"}))),
    Kind.ENDED: Spec(_A, _L, _claims(lambda t: {"iat": _unix(t, -4000), "exp": _unix(t, -400)})),
    Kind.SAME_TOKEN: Spec(_A, _U, _sentinel(lambda _: Fault(same_token=True))),
    Kind.SHORTER: Spec(_A, _U, _claims(lambda t: {"exp": _unix(t, t.world.plan.life / 4)})),
    Kind.DOMAIN_DOWN: Spec(_ALL, _T, _sentinel(lambda _: Fault(status=503), "domain")),
    Kind.DOMAIN_HANGS: Spec(_ALL, _T, _sentinel(lambda _: Fault(hang=True), "domain"), hangs=True),
    Kind.DOMAIN_EVIL: Spec(
        _A, _L, _sentinel(lambda _: Fault(answer=b'{"baseURI": "sentinel.evil.example"}'), "domain")
    ),
    Kind.MOVED: Spec(_A, _L, _move, 240 * MINUTE),
    Kind.VAULT_REFUSES: Spec(_ALL, Recovery.VAULT, _vault(lambda _: VaultFault(refuse=True))),
    Kind.VAULT_HANGS: Spec(_ALL, Recovery.VAULT, _vault(lambda _: VaultFault(hang=True)), hangs=True),
    Kind.VAULT_SEALED: Spec(_ALL, Recovery.VAULT, _vault(lambda _: VaultFault(status=503))),
    Kind.VAULT_429: Spec(_ALL, _L, _limit_rate),
    Kind.LOGIN_ENDED: Spec(_R, _N, _end_login, 60.0),
    Kind.DENIED_LIST: _denied("list"),
    Kind.DENIED_READ_ACCOUNT: _denied("read_account"),
    Kind.DENIED_READ_TOKEN: _denied("read_token"),
    Kind.DENIED_WRITE_TOKEN: _denied("write_token"),
    Kind.DENIED_WRITE_METADATA: _denied("write_metadata"),
    Kind.WRITE_DONE: Spec(_ALL, _T, _vault(lambda _: VaultFault(lose_answer=True), _WRITES), 10 * MINUTE),
    Kind.WRITE_NOT_DONE: Spec(_ALL, _T, _vault(lambda _: VaultFault(refuse=True), _WRITES), 10 * MINUTE),
    Kind.METADATA_DONE: Spec(_ALL, _N, _vault(lambda _: VaultFault(lose_answer=True), _METADATA)),
    Kind.METADATA_NOT_DONE: Spec(_ALL, _N, _vault(lambda _: VaultFault(refuse=True), _METADATA)),
    Kind.STALE: Spec(
        _ALL, _T, _vault(lambda t: VaultFault(stale=timedelta(seconds=t.random.uniform(0, 0.11))), _READS)
    ),
    Kind.VERY_STALE: Spec(
        _ALL,
        _T,
        _vault(lambda t: VaultFault(stale=timedelta(seconds=t.random.choice((0.0, t.random.uniform(0, 2))))), _READS),
    ),
    Kind.LIST_INCOMPLETE: Spec(_ALL, _N, _leave_out),
    Kind.PATH_5XX: Spec(_A, _T, _vault(lambda _: VaultFault(status=500))),
    Kind.VAULT_SKEWED: Spec(_ALL, _N, _skew_vault),
    Kind.VAULT_HOURS_OFF: Spec(_ALL, _N, _skew_vault, 240 * MINUTE),
    Kind.TOKEN_DELETED: Spec(_A, _S, _tamper(_while_marked(lambda kv, path: kv.delete(path)))),
    Kind.TOKEN_DESTROYED: Spec(_A, _S, _tamper(_while_marked(lambda kv, path: kv.destroy(path)))),
    Kind.METADATA_DELETED: Spec(_A, _S, _tamper(lambda t, path: t.world.vault.kv.remove(path))),
    Kind.OLDER_TOKEN: Spec(_A, _S, _tamper(_older)),
    Kind.RUBBISH: Spec(
        _A,
        _S,
        _tamper(
            lambda t, path: bool(t.world.vault.kv.put(path, {"access_token": "rubbish", "managed_by": MANAGED_BY}))
        ),
    ),
    Kind.CROSSED: Spec(_A, _S, _tamper(_foreign_token)),
    Kind.PLANTED_EXP: Spec(_A, _S, _tamper(partial(_older, exp="4070908800", expires_at="2099-01-01T00:00:00Z"))),
    Kind.MARK_WIPED: Spec(
        _A,
        _S,
        _tamper(_wipe_mark),
    ),
    Kind.EARLY_DELETION: Spec(_A, _N, _delete_early, 120 * MINUTE),
    Kind.UNDELETED: Spec(_A, _S, _tamper(_undelete)),
    Kind.STRANGER_NEW: Spec(_A, Recovery.STRANGER, partial(_take_path, wipe=True)),
    Kind.STRANGER_AMID: Spec(_A, Recovery.STRANGER, _take_path_amid),
    Kind.STRANGER_UNMARKED: Spec(_A, Recovery.STRANGER, partial(_take_path, wipe=False)),
    Kind.STRANGER_MARKED: Spec(_A, _S, _tamper(_take_marked_path)),
    Kind.STRANGER_DISABLED: Spec(_A, Recovery.STRANGER, _change_account(_take_path_of_disabled)),
    Kind.SECRET_EDITED: Spec(_A, Recovery.SYNC, partial(_rotate, at_once=True)),
    Kind.SECRET_EARLY: Spec(_A, _N, _rotate_early, 120 * MINUTE),
    Kind.DISABLED: Spec(_A, Recovery.SYNC, _change_account(_disable)),
    Kind.DELETED: Spec(_A, Recovery.SYNC, _change_account(_delete)),
    Kind.REMOVED: Spec(_A, Recovery.SYNC, _change_account(_remove)),
    Kind.INVALID: Spec(_A, Recovery.SYNC, _change_account(_spoil)),
    Kind.WALL_STEPPED: Spec(_ALL, _N, _step_wall, 240 * MINUTE),
    Kind.PAUSED: Spec(_R, _N, _pause, 20 * MINUTE),
    Kind.CRASH: Spec(_R, _N, _crash, 20 * MINUTE),
    Kind.RESTART: Spec(_R, _N, _restart, 2 * MINUTE),
    Kind.MANUAL_ONE: Spec(_A, _N, _manual(), 10.0),
    Kind.MANUAL_ALL: Spec(_ALL, _N, _manual(), 10.0),
    Kind.MANUAL_IF: Spec(_ALL, _N, _manual(expires_within=1200.0), 10.0),
}

_READS_OLD: Final = frozenset({Kind.STALE, Kind.VERY_STALE, Kind.UNDELETED})
"""Kinds under which an older token is rightly adopted, and the newer one with it forgotten."""
_TAMPERED: Final = frozenset(kind for kind, spec in SPECS.items() if spec.recovery is Recovery.RESYNC)
