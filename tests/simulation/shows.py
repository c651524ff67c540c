"""The promises for 1,000 and 10,000 accounts: separate scenes, and their figures."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.simulation.faults import EVERYWHERE, MINUTE, Kind
from tests.simulation.worlds import HOUR, Plan, SimWorld

OUTAGE: Final = 25 * MINUTE
_STEADY: Final = 1.6 * HOUR
"""From then on a cold start is forgotten."""
_SOON: Final = 60.0
"""Seconds within which all that is due is renewed after an outage, unless the cap makes it longer."""


@dataclass(frozen=True)
class Row:
    """One figure and its limit."""

    what: str
    settings: str
    figure: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


OUTAGES: Final[dict[str, tuple[Kind, ...]]] = {
    "Sentinel": (Kind.HOST_REFUSES,),
    "Vault": (Kind.VAULT_REFUSES,),
    "both": (Kind.HOST_REFUSES, Kind.VAULT_REFUSES),
    "one that looks like 403": (Kind.HOST_403,),
}


SICK: Final = (0.1, 0.5, 0.9)
"""Share of the accounts."""


def outage(of: str) -> Iterator[Row]:
    """25 minutes, begun when they hurt most: the token that is renewed last is about to be."""
    plan = Plan(seed=1, accounts=1000, hosts=3, hours=4.0, resync_interval=3600.0, sync_interval=60.0)
    begins = _worst_moment(plan)
    world = _world(plan)
    world.live(begins)
    for kind in OUTAGES[of]:
        assert world.trouble.begin(kind, length=OUTAGE, target=EVERYWHERE)
    over = begins + OUTAGE
    world.live(over)
    now = world.clock()
    least = min((truth.ends - now for truth in world.oracle.truths.values()), default=0.0)
    due = [truth for truth in world.oracle.truths.values() if truth.ends - now < 0.45 * plan.life]
    waited = 0.0
    while waited < 10 * MINUTE and any(truth.ends - world.clock() < 0.45 * plan.life for truth in due):
        waited += 1.0
        world.live(over + waited)
    world.live(over + 0.5 * HOUR)
    world.end()
    settings = "1000 accounts, 3 hosts, 25 min"
    by_cap = len(due) / plan.max_per_second / plan.hosts
    yield Row(f"outage of {of}: expired", settings, sum(truth.ends <= now for truth in due), 0, "tokens")
    yield Row(f"outage of {of}: least life left at its end", settings, round(least), 1, "s", at_least=True)
    yield Row(
        f"outage of {of}: {len(due)} due, all renewed after", settings, waited, max(_SOON, math.ceil(by_cap)), "s"
    )


def isolation(accounts: int = 300) -> Iterator[Row]:
    """1 % permanent failures, and one hanging host of three: what the others see of it."""
    plan = Plan(seed=2, accounts=accounts, hosts=3, hours=4.0, resync_interval=1800.0)
    quiet, troubled = _world(plan), _world(plan)
    ill = {name for number, name in enumerate(sorted(troubled.oracle.truths)) if number % 100 == 0}
    troubled.live(MINUTE)
    for name in sorted(ill):
        assert troubled.trouble.begin(Kind.SECRET_WRONG, length=24 * HOUR, target=name)
    troubled.live(2 * HOUR)
    hanging = troubled.liveperson.hosts["r2"]
    assert troubled.trouble.begin(Kind.HOST_HANGS, length=24 * HOUR, target=hanging)
    settings = f"{accounts} accounts, 1 % refused, 1 of 3 hosts hangs"
    others = {name for name in troubled.oracle.truths if name not in ill and troubled.host_of(name) != hanging}
    shares = []
    for world in (quiet, troubled):
        world.live(plan.hours * HOUR)
        world.end()
        later = [(when - world.began, name, share) for when, name, share in world.oracle.replacements]
        shares.append([share for when, name, share in later if name in others and when > _STEADY])
    without, fields = shares
    mean = abs(sum(fields) / len(fields) - sum(without) / len(without)) * plan.life
    least = (min(without) - min(fields)) * plan.life
    yield Row("the others' renewals: later by, on the average", settings, round(mean, 2), 5, "s")
    yield Row("the others' renewals: the latest later by", settings, round(least, 2), 10, "s")


def neighbours(share: float, accounts: int = 300) -> Iterator[Row]:
    """Let this share of a host's accounts hang for hours, once all of them for a minute, and measure the others."""
    plan = Plan(seed=5, accounts=accounts, hosts=1, hours=6.0, resync_interval=1800.0, sick=(share, share))
    world = _world(plan)
    world.live(_STEADY)
    sick = world.trouble.begin(Kind.HOST_HANGS_FOR_SOME, length=3 * HOUR, target=EVERYWHERE)
    assert sick
    well = [truth for name, truth in world.oracle.truths.items() if name not in sick.touches]
    expired: set[str] = set()
    least = plan.life
    for minute in range(1, 181):
        if minute == 60:
            assert world.trouble.begin(Kind.HOST_HANGS, length=MINUTE, target=EVERYWHERE)
        world.live(_STEADY + minute * MINUTE)
        now = world.clock()
        expired |= {truth.name for truth in well if truth.ends <= now}
        least = min(least, *(truth.ends - now for truth in well))
    waited = 0.0
    while waited < 10 * MINUTE and any(truth.ends <= world.clock() for truth in world.oracle.truths.values()):
        waited += 1.0
        world.live(_STEADY + 3 * HOUR + waited)
    world.live(plan.hours * HOUR)
    world.end()
    settings = f"{accounts} accounts at one host, {share:.0%} hang for 3 h"
    yield Row("the others: expired", settings, len(expired), 0, "tokens")
    yield Row("the others: least life left", settings, round(least), 0.35 * plan.life, "s", at_least=True)
    yield Row("those that hung: all renewed after", settings, waited, 3 * MINUTE, "s")


def replicas(accounts: int = 100, hours: float = 8.0) -> Iterator[Row]:
    """Compare the mints of two and three replicas with those of one."""
    mints = {}
    for number in (1, 2, 3):
        world = _world(Plan(seed=3, replicas=number, accounts=accounts, hours=hours, resync_interval=1800.0))
        world.live(hours * HOUR)
        world.end()
        since = [when - world.began for when in world.oracle.mints]
        mints[number] = (sum(each > _STEADY for each in since), sum(each < 5 * MINUTE for each in since))
    for number in (2, 3):
        settings = f"{number} replicas, {accounts} accounts, {hours - _STEADY / HOUR:g} h"
        yield Row(
            "mints beside those of one: steady state", settings, round(mints[number][0] / mints[1][0], 3), 1.1, "x"
        )
        cold = f"{number} replicas, {accounts} accounts, started within 30 s of each other"
        yield Row("mints beside those of one: cold start", cold, round(mints[number][1] / mints[1][1], 3), number, "x")


def load(accounts: int = 1000, hours: float = 8.0, caps: float = 0.1) -> Iterator[Row]:
    """Measure how evenly mints are spread, after a cold start and after an outage of Sentinel.

    :param caps: share of the default caps. With fewer accounts chance alone makes one minute unlike another, so the
        buckets hold as many mints as a minute of 10,000 accounts does.
    """
    plan = Plan(
        seed=4,
        accounts=accounts,
        hosts=3,
        hours=hours,
        max_in_flight=max(1, round(8 * caps)),
        max_per_second=20 * caps,
        sync_interval=300.0,
        resync_interval=1800.0,
    )
    world = _world(plan)
    fails = 0.4 * hours * HOUR
    world.live(fails)
    assert world.trouble.begin(Kind.HOST_REFUSES, length=OUTAGE, target=EVERYWHERE)
    world.live(hours * HOUR)
    world.end()
    bucket = MINUTE / caps
    settings = f"{accounts} accounts, 3 hosts, {hours:g} h, {plan.max_in_flight} in flight, {plan.max_per_second:g}/s"
    since = [when - world.began for when in world.oracle.mints]
    yield Row("mints per account and day", settings, round(len(since) / accounts * 24 / hours, 1), 60, "mints")
    for what, begins, ends in (
        ("cold start", HOUR, fails),
        ("outage", fails + OUTAGE + HOUR, hours * HOUR),
    ):
        highest, mean = _highest([each for each in since if begins <= each < ends], begins, ends, bucket)
        name = f"highest {bucket / MINUTE:g} min beside the mean, from the second hour after the {what}"
        yield Row(name, settings, round(highest / mean, 2), 1.5, "x")


def _highest(moments: Sequence[float], begins: float, ends: float, bucket: float) -> tuple[int, float]:
    whole = int((ends - begins) / bucket)
    counted = Counter(int((each - begins) / bucket) for each in moments)
    counts = [counted[each] for each in range(whole)]
    return max(counts), sum(counts) / whole


def _world(plan: Plan) -> SimWorld:
    world = SimWorld(plan)
    world.begin()
    return world


@cache
def _worst_moment(plan: Plan) -> float:
    """Return the moment in steady state at which some token has less life left than any at another time."""
    world = _world(plan)
    worst = (float("inf"), 0.0)
    for step in range(80):
        at = _STEADY + step * 30.0
        world.live(at)
        worst = min(worst, (min(truth.ends - world.clock() for truth in world.oracle.truths.values()), at))
    return worst[1]
