"""The status page, and the same as JSON: how every account stands, as the daemon knows it."""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from typing import Any

import jinja2

from worker.core.appjwt import utc
from worker.core.entry import Entry
from worker.core.outcome import State
from worker.core.redact import redacted

_MOST_ROWS = 200
_NEED_NO_TOKEN = (State.DISABLED, State.REMOVED)
_WARN, _ALARM = 0.25, 0.10
"""Shares of life left below which a token is shown as in danger; the alerts have the same."""

_FILES = resources.files("worker.ops")
_STYLE = (_FILES / "page.css").read_text(encoding="utf-8")
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""For the Content-Security-Policy: no other style is taken, and no script at all."""
_TEMPLATE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
    (_FILES / "page.html").read_text(encoding="utf-8")
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One account on the page. `issued` to `ends` are places on its bar, from 0 to 100."""

    account: str
    state: State
    left: str
    danger: str
    bar: Mapping[str, float] | None
    planned: str
    error: str
    since: str
    failures: int
    next_attempt: str


class Page:
    def __init__(
        self,
        *,
        entries: Callable[[], list[Entry]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
        synced_at: Callable[[], float | None],
        vault_trouble: Callable[[], str | None],
        version: str,
    ) -> None:
        """
        :param entries: all accounts, as the fleet knows them.
        :param now: what the time is by Vault's clock.
        :param vault_trouble: what keeps Vault from being of use, in words; None = it is of use.
        """
        self._entries = entries
        self._clock = clock
        self._now = now
        self._synced_at = synced_at
        self._vault_trouble = vault_trouble
        self._version = version

    def json(self) -> bytes:
        """As `--status --output json`, and of each account `failures` and `next_attempt` too."""
        steady, now = self._clock(), self._now()
        lines = [_line(entry, steady, now) for entry in sorted(self._entries(), key=_urgency(steady))]
        return json.dumps({"accounts": lines}).encode()

    def html(self, wanted: str = "") -> bytes:
        """:param wanted: only the accounts that have this in their name, state, host or error."""
        steady, entries = self._clock(), sorted(self._entries(), key=_urgency(self._clock()))
        synced, trouble = self._synced_at(), self._vault_trouble()
        found = [entry for entry in entries if wanted.lower() in _searched(entry)]
        least = next((entry for entry in entries if entry.state not in _NEED_NO_TOKEN), None)
        return _TEMPLATE.render(
            style=_STYLE,
            version=self._version,
            at=utc(self._now()),
            least=least and _row(least, steady),
            states=[(state, count) for state in State if (count := Counter(e.state for e in entries)[state])],
            total=len(entries),
            vault=redacted(trouble) if trouble else None,
            synced=None if synced is None else _words(steady - synced),
            hosts=sorted(_hosts(entries)),
            rows=[_row(entry, steady) for entry in found[:_MOST_ROWS]],
            wanted=wanted,
        ).encode()


def _urgency(now: float) -> Callable[[Entry], tuple[bool, float, str]]:
    """Who ends first comes first; who needs no token is last."""
    return lambda entry: (entry.state in _NEED_NO_TOKEN, entry.held.life.left(now) if entry.held else 0.0, entry.name)


def _line(entry: Entry, steady: float, now: datetime) -> dict[str, Any]:
    def at(moment: float | None) -> str | None:
        return None if moment in (None, float("inf")) else utc(now + timedelta(seconds=moment - steady))

    held = entry.held
    return {
        "account": entry.name,
        "state": entry.state,
        "life_left": round(held.life.left(steady), 3) if held else 0.0,
        "issued_at": at(held.life.begins) if held else None,
        "expires_at": at(held.life.ends) if held else None,
        "refresh_at": at(held.refresh_at) if held else None,
        "fingerprint": held.fingerprint if held else None,
        "last_error": redacted(entry.last_error) if entry.last_error else None,
        "failing_since": at(entry.failing_since),
        "failures": entry.failures,
        "next_attempt": at(entry.due),
    }


def _row(entry: Entry, now: float) -> _Row:
    held = entry.held
    left = held.life.left(now) if held else 0.0
    share = held.life.share_left(now) if held else 0.0
    bar = None
    if held and left:
        life = held.life.ends - held.life.begins
        bar = {
            "now": round(100 * (1 - share), 1),
            "planned": round(100 * min(1.0, max(0.0, (held.refresh_at - held.life.begins) / life)), 1),
        }
    return _Row(
        account=entry.name,
        state=entry.state,
        left=_words(left) if left else "no live token",
        danger="" if entry.state in _NEED_NO_TOKEN else _danger(share),
        bar=bar,
        planned=_until(held.refresh_at - now) if held and left and entry.state not in _NEED_NO_TOKEN else "",
        error=redacted(entry.last_error or ""),
        since=_words(now - entry.failing_since) if entry.failing_since is not None else "",
        failures=entry.failures,
        next_attempt=_until(entry.due - now) if entry.due not in (None, float("inf")) else "",
    )


def _danger(share: float) -> str:
    if share < _ALARM:
        return "alarm"
    return "warn" if share < _WARN else "well"


def _hosts(entries: Iterable[Entry]) -> Iterator[tuple[str, int, int, str]]:
    """Each Sentinel host: its accounts, how many of them fail there, and the latest error in words."""
    at: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.host and entry.state not in _NEED_NO_TOKEN:
            at[entry.host].append(entry)
    for host, there in at.items():
        failing = [entry for entry in there if (entry.last_error or "").startswith(("sentinel:", "claims:"))]
        yield host, len(there), len(failing), redacted(failing[0].last_error or "") if failing else ""


def _searched(entry: Entry) -> str:
    return " ".join((entry.name, entry.state, entry.host or "", entry.last_error or "")).lower()


def _until(seconds: float) -> str:
    return f"in {_words(seconds)}" if seconds >= 1 else "now"


def _words(seconds: float) -> str:
    """The two largest units: 1 h 4 min, 27 min 12 s, 9 s."""
    whole = max(0, int(seconds))
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((number for number, (count, _) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count or unit == units[first][1])
