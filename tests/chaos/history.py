"""Reconstruct the history of the tokens' paths from Vault's audit file, in its order of versions.

No reader and no worker is asked. A write whose answer was lost is found by a later read.
"""

import itertools
import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.simulation.hub import Process
from tests.simulation.ownership import MANAGED_BY, Ownership

_PATH = re.compile(r"secret/(\w+)/liveperson/tokens/(.+)")
_WRITES = frozenset({"create", "update", "patch"})
_FORWARDED = "cannot write to readonly storage"
"""The error that a standby logs before it asks the leader."""
_GRACE = 5.0
"""Seconds after an outage in which a token that ended meanwhile is to be replaced."""

_REPORT = """\
Three OpenBao nodes and two workers, each in a network namespace of its own, and between them a router that cuts,
flaps and delays each way by itself, for {minutes:g} minutes (seed {seed}). A token lives {life} s. The workers come to
Vault by a balancer that knows nothing of health. Through whatever node strangers write, delete, undelete and destroy at
the paths of half of the accounts and of each new one, wipe them, and take our mark away or set it. What came of it is
judged by Vault's own audit file, in its order of versions; expiry at the paths that no stranger touches.

{faults}

| what | how often |
| --- | --- |
{rows}
"""
_FIRST = (
    "expired",
    "expired in outages longer than what remained",
    "backwards",
    "a stranger's secret is overwritten",
    "a path is marked without a data write",
)
"""Of the counts, also where there are none."""

Outage = tuple[float, float]
"""The start and the end of a time in which no write was possible."""


@dataclass(frozen=True)
class Event:
    """Something done to a path, or what a worker was shown of it."""

    at: float
    name: str
    what: str
    """data, metadata, gone, wiped, viewed; attempted = metadata, where an error leaves open whether it was done."""
    worker: str | None
    """None = a stranger."""
    version: int = 0
    created: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Or the custom_metadata."""
    marked: bool = False
    """As a worker was shown it."""


@dataclass
class Verdict:
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    exceptions: Counter[str] = field(default_factory=Counter)
    """The cases that check-and-set cannot see."""


@dataclass
class Result:
    seconds: float
    seed: int
    life: int
    """Of a token, in seconds."""
    faults: list[str]
    verdict: Verdict
    outages: list[Outage]

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems


def events(audit: Path) -> list[Event]:
    """Return the events in Vault's order. The file is read twice, as it may be larger than the memory."""
    requests: dict[str, float] = {}
    writers: dict[tuple[str, str], str | None] = {}
    versions: dict[tuple[str, str], Event] = {}
    rest: list[Event] = []
    for line, kind, name in _lines(audit, "request"):
        request = line["request"]
        requests[request["id"]] = _moment(line["time"])
        if kind == "data" and request["operation"] in _WRITES:
            writers[name, _text(request["data"]["data"])] = _worker(line)
    for line, kind, name in _lines(audit, "response"):
        request = line["request"]
        if "error" in line:
            if _done(kind, request) == "metadata" and _FORWARDED not in line["error"]:
                moment, sent = requests[request["id"]], _custom_metadata(request)
                rest.append(Event(moment, name, "attempted", _worker(line), data=sent))
            continue
        if kind == "data" and request["operation"] != "delete":
            shown = _shown(line, name, requests[request["id"]])
            written, version = request["operation"] in _WRITES, (name, shown.created)
            if shown.created and shown.data and (written or version not in versions):
                worker = shown.worker if written else writers[name, _text(shown.data)]
                versions[version] = replace(shown, at=_moment(shown.created), what="data", worker=worker)
            if shown.worker and not written:
                rest.append(replace(shown, data={"managed_by": shown.data.get("managed_by")}))
        elif (what := _done(kind, request)) and not _refused(line):
            rest.append(Event(_moment(line["time"]), name, what, _worker(line), data=_custom_metadata(request)))
    return sorted([*versions.values(), *rest], key=lambda event: event.at)


def _worker(line: Mapping[str, Any]) -> str | None:
    return ((line.get("auth") or {}).get("metadata") or {}).get("role_name")


def _custom_metadata(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return (request.get("data") or {}).get("custom_metadata") or {}


def _shown(line: dict[str, Any], name: str, at: float) -> Event:
    """Return the path's newest version as an answer shows it."""
    request, body = line["request"], line["response"].get("data") or {}
    if "http_raw_body" in body:  # as in the answer about a deleted version
        body = json.loads(body["http_raw_body"])["data"] or {}
    metadata, data = (body, request["data"]["data"]) if request["operation"] in _WRITES else _parts(body)
    marked = (metadata.get("custom_metadata") or {}).get("managed_by") == MANAGED_BY
    number, created = metadata.get("version", 0), metadata.get("created_time", "")
    return Event(at, name, "viewed", _worker(line), number, created, data, marked)


def _parts(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return body.get("metadata") or {}, body.get("data") or {}


def _refused(line: Mapping[str, Any]) -> bool:
    """Return True for an error in a complete answer, as a standby sends while it does not know the path yet."""
    body = line["response"].get("data") or {}
    return int(body.get("http_status_code", 0)) >= 400


def _done(kind: str, request: Mapping[str, Any]) -> str | None:
    if kind == "metadata":
        if request["operation"] == "delete":
            return "wiped"
        return "metadata" if request["operation"] in _WRITES and _custom_metadata(request) else None
    return "gone" if kind == "destroy" or request["operation"] == "delete" else None


def judge(happened: Sequence[Event], quiet: Iterable[str], outages: Sequence[Outage], until: float) -> Verdict:
    """:param quiet: the accounts whose paths no stranger touches, so that none of their tokens may expire."""
    verdict = Verdict()
    paths: dict[str, _Path] = {}
    for event in happened:
        path = paths.setdefault(event.name, _Path(event.name, verdict))
        path.take(event)
    for name in quiet:
        ours = [event for event in happened if event.name == name and event.what == "data"]
        _expired(name, ours, outages, until, verdict)
    return verdict


def _expired(name: str, versions: Sequence[Event], outages: Sequence[Outage], until: float, verdict: Verdict) -> None:
    for before, after in itertools.zip_longest(versions, versions[1:]):
        ended, replaced = float(before.data["exp"]), after.at if after else until
        if replaced <= ended:
            continue
        if any(start <= ended and replaced <= end + _GRACE for start, end in outages):
            verdict.counts["expired in outages longer than what remained"] += 1
        else:
            verdict.counts["expired"] += 1
            verdict.problems.append(f"{name} was without a live token for {replaced - ended:.1f} s, from {ended:.0f}")


def report(result: Result) -> str:
    """Return the report in Markdown, for people."""
    verdict, kinds = result.verdict, Counter(result.faults)
    counts = {
        **{what: verdict.counts[what] for what in _FIRST},
        **{f"exception: {what}": count for what, count in sorted(verdict.exceptions.items())},
        f"outages, {sum(end - start for start, end in result.outages):.0f} s in all": len(result.outages),
        **dict(sorted(verdict.counts.items())),
    }
    faults = f"{len(result.faults)} faults: " + ", ".join(f"{kind} ({kinds[kind]})" for kind in sorted(kinds)) + "."
    rows = "\n".join(f"| {what} | {count} |" for what, count in counts.items())
    text = _REPORT.format(minutes=result.seconds / 60, seed=result.seed, life=result.life, faults=faults, rows=rows)
    return text + "".join(f"\n**FAILED**: {problem}\n" for problem in result.problems)


class _Path:
    """One token's path."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        self._verdict = verdict
        self._owner = Ownership(name, self._broken, verdict.exceptions)
        self._workers: defaultdict[str, Process] = defaultdict(lambda: Process("worker", 0.0))
        self._states: list[tuple[float, tuple[int, str, bool]]] = [(0.0, (0, "", False))]
        """Version, when it was made, and whether the path was marked; from when on."""
        self._wiped = 0.0
        """When a wipe was last reported as done; a lagging standby reports it too, and the versions continue."""
        self._attempted: list[Event] = []
        self._last: deque[str] = deque(maxlen=20)
        """Its last events, for people."""
        self._ends = 0.0
        """Expiry of the stored token, if it is ours."""

    def take(self, event: Event) -> None:
        counts, owner, worker = self._verdict.counts, self._owner, event.worker and self._workers[event.worker]
        process = worker or None
        self._last.append(f"{event.at:.3f} {event.what} by {event.worker}, version {event.version}, {_shape(event)}")
        match event.what:
            case "attempted":
                self._attempted.append(event)
                return
            case "viewed":
                assert process
                self._viewed(process, event)
                return
            case "wiped":
                counts["wiped"] += 1
                self._wiped = event.at
                return
            case "data":
                if event.version <= self._states[-1][1][0]:
                    owner.gone(wiped=True, now=self._wiped)
                    self._states.append((self._wiped, (0, "", False)))
                    self._ends = 0.0
                if process:
                    counts["tokens written"] += 1
                    self._published(event)
                else:
                    counts["strangers' secrets at " + ("marked" if owner.marked else "unmarked") + " paths"] += 1
                    self._ends = 0.0
                owner.written(process, event.data, event.version, event.at)
                state = (event.version, event.created)
            case "metadata":
                owner.metadata_written(process, event.data, event.at)
                state = self._states[-1][1][:2]
            case _:
                counts["versions deleted or destroyed"] += 1
                self._ends, state = 0.0, self._states[-1][1][:2]
        self._states.append((event.at, (*state, owner.marked)))

    def _published(self, event: Event) -> None:
        ends = float(event.data["exp"])
        if ends <= self._ends:
            self._verdict.counts["backwards"] += 1
            self._verdict.problems.append(f"{event.name}: version {event.version} expires no later than the one before")
        self._ends = ends

    def _viewed(self, process: Process, event: Event) -> None:
        """Find out how old a standby's answer was: until when it was so."""
        shown, as_of = (event.version, event.created, event.marked), event.at
        if shown != self._states[-1][1]:
            self._learn(event)
            until = [after for (_, state), (after, _) in itertools.pairwise(self._states) if state == shown]
            if until:
                as_of = until[-1]
                self._verdict.counts["stale reads by workers"] += 1
        is_strangers = bool(event.version) and not event.marked and event.data.get("managed_by") != MANAGED_BY
        self._owner.viewed(process, event.version, is_strangers=is_strangers, as_of=as_of)

    def _learn(self, seen: Event) -> None:
        """Something whose answer was an error was done all the same, where the path is as it never was before."""
        version, states = (seen.version, seen.created), [state for _, state in self._states]
        if states[-1][:2] != version or (*version, seen.marked) in states:
            return
        for event in reversed(self._attempted):
            if "managed_by" in event.data and (event.data["managed_by"] == MANAGED_BY) == seen.marked:
                self._verdict.counts["changes of the mark found to be done that Vault called failed"] += 1
                self._attempted.remove(event)
                self.take(replace(event, what="metadata"))
                return

    def _broken(self, promise: str, *facts: object) -> None:
        self._verdict.counts[promise] += 1
        self._verdict.problems.append("\n".join([f"{promise}: {' '.join(map(str, facts))}", *self._last]))


def _lines(audit: Path, kind: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield each line of this kind with its kind of path (data, metadata …) and its account."""
    with audit.open() as lines:
        for text in lines:
            if "/liveperson/tokens/" not in text or f'"type":"{kind}"' not in text:
                continue
            with suppress(ValueError):  # a server was at its last line
                line = json.loads(text)
                if path := _PATH.fullmatch(line["request"]["path"]):
                    yield line, path[1], path[2]


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _shape(event: Event) -> str:
    """Describe the event without its secrets."""
    return f"managed_by {event.data.get('managed_by')}, marked {event.marked}, made {event.created}"


def _text(data: object) -> str:
    return json.dumps(data, sort_keys=True)
