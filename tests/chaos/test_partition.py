"""Networks that part under three nodes and two workers; and that what judges it finds what it is there for."""

import os
import random
import socket
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.conftest import PARTITION
from tests.chaos.history import Event, Verdict, judge, report
from tests.chaos.network import TOOLS, Network
from tests.chaos.partition import partition
from tests.simulation.ownership import MANAGED_BY


@pytest.mark.long
@pytest.mark.tool(*TOOLS)
def test_networks_that_part_cost_no_token_and_no_strangers_secret(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = 60 * float(os.environ.get("PARTITION_MINUTES", "30"))
    result = partition(tmp_path, seconds, seed=random.randrange(1 << 32))
    request.config.stash[PARTITION] = text = report(result)
    assert not result.problems, text
    counts = result.verdict.counts
    for what in ("tokens written", "strangers' secrets at unmarked paths", "strangers' secrets at marked paths"):
        assert counts[what], text
    assert len(result.faults) > 2, text


@pytest.mark.tool(*TOOLS)
def test_a_way_is_cut_and_the_way_back_is_not() -> None:
    with Network(2) as network:
        ends = {number: space.do(partial(_udp, space.address)) for number, space in network.spaces.items()}
        for links, heard in (((), {1, 2}), (((1, 2),), {1}), (((1, 2), (2, 1)), set())):
            with network.cut(links):
                ends[1].sendto(b"x", (network.spaces[2].address, 1))
                ends[2].sendto(b"x", (network.spaces[1].address, 1))
                assert {number for number, end in ends.items() if _hears(end)} == heard
        for end in ends.values():
            end.close()


def _udp(address: str) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind((address, 1))
    end.settimeout(0.5)
    return end


def _hears(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b"x"
    except TimeoutError:
        return False


def token(at: float, exp: int, version: int = 1, worker: str = "worker-4") -> Event:
    return Event(at, "le1", "data", worker, version, f"t{at}", {"exp": str(exp), "managed_by": MANAGED_BY})


def seen(at: float, of: Event | None = None, *, marked: bool = False) -> Event:
    version, created, data = (of.version, of.created, of.data) if of else (0, "", {})
    return Event(at, "le1", "viewed", "worker-4", version, created, data, marked)


def marks(at: float, worker: str | None = "worker-4", value: str | None = MANAGED_BY) -> Event:
    return Event(at, "le1", "metadata", worker, data={"managed_by": value})


def strangers(at: float, version: int = 1) -> Event:
    return Event(at, "le1", "data", None, version, f"t{at}", {"password": "another's"})


def wiped(at: float) -> Event:
    return Event(at, "le1", "wiped", None)


OURS = [seen(1), token(2, 22), marks(3)]
"""A path that is read, written and marked."""


@pytest.mark.parametrize(
    ("happened", "found"),
    [
        ([*OURS, token(12, 32, 2), strangers(13, 3), token(14, 34, 4)], []),
        ([*OURS, token(12, 22, 2)], ["expires no later"]),
        ([strangers(1), token(2, 22, 2)], ["a stranger's secret is overwritten"]),
        ([strangers(1), seen(2, strangers(1)), marks(3)], ["a path is marked without a data write"]),
        ([*OURS, wiped(5), strangers(6), seen(7, strangers(6)), token(8, 30, 2)], ["a stranger's secret is"]),
        ([*OURS, marks(5, None, None), strangers(6, 2), token(7, 30, 3)], ["a stranger's secret is overwritten"]),
        ([*OURS, marks(5, None, None), strangers(6, 2), marks(7, None), token(8, 30, 3)], []),
    ],
)
def test_a_broken_promise_is_found(happened: Iterable[Event], found: list[str]) -> None:
    verdict = judge([*happened], [], [], until=20)
    assert len(verdict.problems) == len(found)
    assert all(text in problem for text, problem in zip(found, verdict.problems, strict=True))


def test_a_mark_that_vault_called_failed_and_a_worker_was_shown_counts() -> None:
    handed = Event(3, "le1", "attempted", None, data={"managed_by": MANAGED_BY})
    theirs = strangers(1)
    assert judge([theirs, handed, seen(4, theirs, marked=True), token(5, 30, 2)], [], [], until=20).problems == []
    assert len(judge([theirs, handed, seen(4, theirs), token(5, 30, 2)], [], [], until=20).problems) == 1


@pytest.mark.parametrize("moment", [4, 5.5, 9], ids=["read before", "read amid it", "read at a standby that is behind"])
def test_what_check_and_set_cannot_see_is_counted_apart(moment: float) -> None:
    first = token(2, 22)
    happened = [*OURS, seen(moment, first, marked=True), wiped(5), strangers(6), token(10, 30, 2)]
    verdict = judge(sorted(happened, key=lambda event: event.at), [], [], until=20)
    assert verdict.problems == []
    assert verdict.exceptions.total() == 1
    assert verdict.counts["stale reads by workers"] == (moment > 6)


@pytest.mark.parametrize(
    ("outages", "expired"),
    [([], 1), ([(15.0, 20.0)], 0), ([(15.0, 28.0)], 0), ([(23.0, 28.0)], 1), ([(5.0, 8.0)], 1)],
    ids=["none", "until shortly before its end", "beyond its end", "begun later", "long over"],
)
def test_a_token_may_expire_in_an_outage_longer_than_what_remained(
    outages: list[tuple[float, float]], expired: int
) -> None:
    verdict = judge([*OURS, token(24, 44, 2)], ["le1"], outages, until=30)
    assert verdict.counts["expired"] == len(verdict.problems) == expired


def test_the_end_of_the_run_counts_too() -> None:
    assert isinstance(verdict := judge(OURS, ["le1"], [], until=30), Verdict)
    assert verdict.counts["expired"] == 1
