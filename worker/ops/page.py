"""The status page, and the same as JSON: the state of every account, as the daemon knows it."""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources

import jinja2

from worker.core.appjwt import utc
from worker.core.outcome import State
from worker.core.record import AccountRecord
from worker.core.redact import redacted
from worker.core.status import AccountStatus, Severity, record_status

_MAX_ROWS = 200
_MAX_DIGITS = 10
_DAY = 86_400.0
_MAX_CAUSES = 3
"""Of a host's failures."""
_SEVERITY_CLASSES = {Severity.OK: "well", Severity.WARNING: "warn", Severity.CRITICAL: "alarm"}
"""The style of a row."""
_Account = tuple[AccountRecord, AccountStatus]

_FILES = resources.files("worker.ops")
_STYLE = (_FILES / "page.css").read_text(encoding="utf-8")
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""For the Content-Security-Policy: no other style is taken, and no script at all."""
_TEMPLATE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
    (_FILES / "page.html").read_text(encoding="utf-8")
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One account on the page; the places on its bar are from 0 to 100."""

    account: str
    state: State
    remaining: str
    severity: str
    bar: Mapping[str, float] | None
    error: str
    since: str
    failures: int
    next_step: str


class Page:
    def __init__(
        self,
        *,
        records: Callable[[], list[AccountRecord]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
        synced_at: Callable[[], float | None],
        vault_error: Callable[[], str | None],
        skew: Callable[[], float],
        version: str,
    ) -> None:
        """
        :param records: returns all accounts.
        :param now: returns Vault's clock.
        :param vault_error: returns why Vault cannot be used, None = it can.
        :param skew: returns the seconds by which Sentinel's clock is ahead of Vault's.
        """
        self._records = records
        self._clock = clock
        self._now = now
        self._synced_at = synced_at
        self._vault_error = vault_error
        self._skew = skew
        self._version = version

    def json(self) -> bytes:
        """Return what `--status --output json` returns, with `failures` and `next_attempt` of each account."""
        steady, now = self._clock(), self._now()

        def at(moment: float | None) -> str | None:
            return None if moment in (None, float("inf")) else utc(now + timedelta(seconds=moment - steady))

        accounts = [
            {**status.as_json(), "failures": record.failures, "next_attempt": at(record.due)}
            for record, status in self._statuses()
        ]
        for account in accounts:
            account["last_error"] = redacted(str(account["last_error"])) if account["last_error"] else None
        return json.dumps({"accounts": accounts}).encode()

    def html(self, parameters: Mapping[str, str]) -> bytes:
        """
        :param parameters: `q` = only the accounts that have this in their name, state, host or error; `from` = leave
            out so many of them.
        """
        query, skipped = parameters.get("q", ""), parameters.get("from", "")
        first = int(skipped) if skipped.isdecimal() and len(skipped) < _MAX_DIGITS else 0
        steady, accounts = self._clock(), self._statuses()
        synced, skew = self._synced_at(), self._skew()
        found = [each for each in accounts if query.lower() in _search_text(*each)]
        rows = [_row(*each, steady) for each in found[first : first + _MAX_ROWS]]
        without_token = [record for record, status in accounts if status.margin is not None and not status.remaining]
        most_urgent = next((each for each in accounts if each[1].margin is not None), None)
        states = Counter(status.state for _, status in accounts)
        return _TEMPLATE.render(
            style=_STYLE,
            version=self._version,
            at=utc(self._now()),
            most_urgent=most_urgent and _row(*most_urgent, steady),
            without_token=len(without_token),
            without_token_since=self._time_of_day(_without_token_since(without_token[0])) if without_token else None,
            states=[(state, states[state]) for state in State if states[state]],
            total=len(accounts),
            vault=redacted(self._vault_error() or ""),
            skew=f"{_humanize(abs(skew))} {'behind' if skew > 0 else 'ahead of'}" if skew else None,
            synced=None if synced is None else _humanize(steady - synced),
            hosts=sorted(_hosts(accounts)),
            rows=rows,
            found=len(found),
            first=first,
            before=max(0, first - _MAX_ROWS),
            after=first + len(rows),
            query=query,
        ).encode()

    def _time_of_day(self, moment: float | None) -> str | None:
        if moment is None:
            return None
        ago = self._clock() - moment
        return f"{self._now() - timedelta(seconds=ago):{'%H:%M:%S' if ago < _DAY else '%Y-%m-%d %H:%M'}} UTC"

    def _statuses(self) -> list[_Account]:
        """Return the accounts: the longest without a live token first, then by expiry, those that need none last."""
        steady, now = self._clock(), self._now()
        accounts = [(record, record_status(record, steady, now)) for record in self._records()]
        return sorted(accounts, key=lambda each: each[1].urgency)


def _without_token_since(record: AccountRecord) -> float | None:
    """Return since when an account without a live token has had none, on the steady clock; None = not known."""
    return record.tracked.validity.end if record.tracked else record.failing_since


def _row(record: AccountRecord, status: AccountStatus, now: float) -> _Row:
    tracked, remaining = record.tracked, status.remaining
    needs_token = status.margin is not None
    bar = None
    if tracked and remaining:
        share = (tracked.planned_at - tracked.validity.start) / (tracked.validity.end - tracked.validity.start)
        bar = {
            "over": round(100 * (1 - tracked.validity.remaining_fraction(now)), 1),
            "planned": round(100 * min(1.0, max(0.0, share)), 1),
        }
    next_step = ""
    if record.failures and record.due not in (None, float("inf")):
        next_step = f"retry {_format_until(record.due - now)}"
    elif tracked and remaining and needs_token:
        next_step = f"refresh {_format_until(tracked.planned_at - now)}"
    return _Row(
        account=record.name,
        state=status.state,
        remaining=_humanize(remaining) if remaining else "no live token",
        severity=_SEVERITY_CLASSES[status.severity] if needs_token else "",
        bar=bar,
        error=redacted(status.last_error or ""),
        since=_humanize(now - record.failing_since) if record.failing_since is not None else "",
        failures=record.failures,
        next_step=next_step,
    )


def _hosts(accounts: Iterable[_Account]) -> Iterator[tuple[str, int, int, list[tuple[str, int]]]]:
    """Yield each Sentinel host, its accounts, how many of them fail there, and the errors with how many have each."""
    at: defaultdict[str, list[AccountStatus]] = defaultdict(list)
    for record, status in accounts:
        if record.host and status.margin is not None:
            at[record.host].append(status)
    for host, there in at.items():
        errors = [each.last_error for each in there if (each.last_error or "").startswith(("sentinel:", "claims:"))]
        causes = Counter(redacted(error or "") for error in errors).most_common(_MAX_CAUSES)
        yield host, len(there), len(errors), causes


def _search_text(record: AccountRecord, status: AccountStatus) -> str:
    return " ".join((record.name, status.state, record.host or "", status.last_error or "")).lower()


def _format_until(seconds: float) -> str:
    return f"in {_humanize(seconds)}" if seconds >= 1 else "now"


def _humanize(seconds: float) -> str:
    """The two largest units: 1 h 4 min, 27 min 12 s, 9 s."""
    whole = max(0, int(seconds))
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((number for number, (count, _) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count or unit == units[first][1])
