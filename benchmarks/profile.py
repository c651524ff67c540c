"""Profile the CPU of a refresh, in one thread."""

import json
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import urllib3

from worker import settings, wiring
from worker.core import appjwt, plan
from worker.core.outcome import State, Transition
from worker.net import http
from worker.ops import logs
from worker.ops.events import Events
from worker.refresh import ForceRefresh

_PARTS: dict[str, list[tuple[Any, str]]] = {
    "TLS and the kernel": [(ssl.SSLSocket, "send"), (ssl.SSLSocket, "read")],
    "urllib3 and http.client": [(urllib3.HTTPConnectionPool, "urlopen"), (urllib3.HTTPResponse, "read")],
    "what else is an exchange: deadline, CA, headers": [(http._Adapter, "send")],  # noqa: SLF001
    "the checks of both tokens": [(plan, "validate"), (appjwt, "validate")],
    "the log line": [(Events, "report")],
}
"""Each is counted without those above it that it calls."""
_REST = "plan, check-and-set, hvac and JSON"

_spent: Counter[str] = Counter()
_inner = [0.0]


def _timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        _inner.append(0.0)
        started = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            elapsed = time.thread_time() - started
            _spent[part] += elapsed - _inner.pop()  # type: ignore[assignment] # a Counter may hold seconds
            _inner[-1] += elapsed

    return timed


def main(names: list[str]) -> None:
    components = wiring.build(settings.load(None))
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123
        logs.configure("info", "json", nowhere)
        for part, functions in _PARTS.items():
            for owner, name in functions:
                setattr(owner, name, _timed(part, getattr(owner, name)))
        components.session.login.keep_alive()
        _spent.clear()
        started = time.thread_time()
        for name in names:
            outcome = components.refresher.refresh(name, force=ForceRefresh())
            components.events.report(outcome, Transition(State.OK, State.OK, 0, 0.0, None, float("inf")))
        whole = time.thread_time() - started
    _spent[_REST] = whole - sum(_spent.values())  # type: ignore[assignment]
    shares = {part: round(_spent[part] / whole, 3) for part in (*_PARTS, _REST)}
    sys.stdout.write(json.dumps({"ms": round(whole / len(names) * 1000, 3), "shares": shares}) + "\n")


if __name__ == "__main__":
    main(json.load(sys.stdin))
