"""The text of each screen at a moment: the log, --status, --check, the page and Alertmanager."""

import html
import re
from collections import Counter
from typing import NamedTuple

import requests

from tests.alerts.stand import Stand
from tests.integration.processes import Done

TROUBLE = ("warning", "error")
_LONGEST = 110


class Screens(NamedTuple):
    log: str
    status: str
    check: str
    page: str
    alerts: str


def screens(stand: Stand) -> Screens:
    world = stand.world
    return Screens(
        log=_log(stand),
        status=_status(world.call("--status", "--output", "json")),
        check=_check(world.call("--check", "--output", "json")),
        page=_page(world.settings["APPJWT_HTTP_LISTEN"]),
        alerts=_alerts(stand.alertmanager.inhibited()),
    )


def _log(stand: Stand) -> str:
    """Return the latest line that is a warning or an error."""
    lines = [line for line in stand.world.latest_log if line["level"] in TROUBLE]
    if not lines:
        return "nothing"
    line = lines[-1]
    return _short(f"{line['event']}: {line.get('error') or line.get('warning') or line.get('hint') or ''}")


def _status(done: Done) -> str:
    if not done.out:
        return _short(f"exit {done.status}: {done.err.removeprefix('appjwt-worker: ')}")
    accounts = done.document["accounts"]
    states = Counter(account["state"] for account in accounts)
    errors = Counter(account["last_error"] for account in accounts if account["last_error"])
    summary = ", ".join(f"{count} {state}" for state, count in states.items())
    return _short(f"exit {done.status}: {summary}{f'; {errors.most_common(1)[0][0]}' if errors else ''}")


def _check(done: Done) -> str:
    failed = [line for line in done.document["checks"] if not line["ok"]]
    warned = [line for line in done.document["checks"] if "warning" in line["detail"]]
    lines = failed or [line for line in warned if line["check"] == "tokens"]
    summary = "; ".join(f"{line['check']}: {line['detail']}" for line in lines[:1]) or "all passed"
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"exit {done.status}: {_short(summary)}{more}"


def _page(address: str) -> str:
    try:
        text = requests.get(f"http://{address}/", timeout=5).text
    except requests.RequestException:
        return "no answer"
    (headline,) = re.findall('<p class="big">(.*?)</p>', text)
    vault = "; Vault cannot be used" if "Vault cannot be used</span>" in text else ""
    return html.unescape(headline + ("" if headline == "Vault cannot be used" else vault))


def _alerts(inhibited: dict[str, bool]) -> str:
    names = sorted(inhibited, key=lambda name: (inhibited[name], name))
    return ", ".join(
        f"({name.removeprefix('AppJWT')})" if inhibited[name] else name.removeprefix("AppJWT") for name in names
    )


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
