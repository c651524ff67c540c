"""The events that the worker's code logs, with their levels and fields, read from its source."""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from tests.builders import app_jwt
from worker.ops.events import _PUBLISHED

ROOT = Path(__file__).parents[2]
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})

T = TypeVar("T", bound=ast.AST)


@dataclass
class Event:
    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


@cache
def events() -> dict[str, Event]:
    """Return every event; AssertionError where a name, a field or a logger cannot be followed."""
    found: dict[str, Event] = {}
    for path, tree in modules().items():
        aliases = {ast.unparse(each.targets[0]): each.value for each in nodes(tree, ast.Assign)}
        followed: set[ast.AST] = set()
        for call in nodes(tree, ast.Call):
            where = f"{path}:{call.lineno}"
            logger = aliases.get(ast.unparse(call.func), call.func)
            levels = _levels(logger, call)
            if not levels:
                assert "get_logger" not in ast.unparse(call.func) or aliases.get("log") is call, f"{where}: not `log`"
                continue
            followed.update(ast.walk(logger))
            for name in _names(call, aliases, where):
                event = found.setdefault(name, Event())
                event.levels |= {"error" if level == "exception" else level for level in levels}
                event.fields |= _fields(call, where) | ({"exception"} & levels)
        for log in (each for each in nodes(tree, ast.Name) if each.id == "log" and isinstance(each.ctx, ast.Load)):
            assert log in followed, f"{path}:{log.lineno}: what is logged here is not known"
    return found


@cache
def modules() -> dict[Path, ast.Module]:
    files = sorted((ROOT / "worker").rglob("*.py"))
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def nodes(tree: ast.AST, kind: type[T]) -> Iterator[T]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def _levels(logger: ast.AST, call: ast.Call) -> set[str]:
    """Return the levels at which a call logs; none if it does not."""
    if isinstance(logger, ast.IfExp):  # log_sync = log.info if … else log.debug
        return _levels(logger.body, call) | _levels(logger.orelse, call)
    owner, _, method = ast.unparse(logger).rpartition(".")
    if method == "_record":  # of the log queue, which cannot log by a logger
        return {ast.unparse(call.args[0]).rpartition(".")[2].lower()}
    return {method} & LEVELS if owner == "log" or owner.startswith("logging.getLogger(") else set()


def _names(call: ast.Call, aliases: Mapping[str, ast.expr], where: str) -> Iterable[str]:
    text = call.args[1 if ast.unparse(call.func) == "_record" else 0]
    text = aliases.get(ast.unparse(text), text)
    if isinstance(text, ast.Constant):
        return [str(text.value)]
    assert ast.unparse(text) in _BUILT, f"{where}: the name of the event is not known: {ast.unparse(text)}"
    return _BUILT[ast.unparse(text)]()


def _fields(call: ast.Call, where: str) -> set[str]:
    named: set[str] = set()
    for each in call.keywords:
        if each.arg == "extra" and isinstance(each.value, ast.Dict):
            named |= {ast.literal_eval(key) for key in each.value.keys if key}
        elif each.arg:
            named.add("exception" if each.arg == "exc_info" else each.arg)
        else:
            text = ast.unparse(each.value)
            assert text in _SPREAD, f"{where}: the fields are not known: **{text}"
            named |= {*_SPREAD[text]()}
    return named


def _of_failed_uses() -> Iterator[str]:
    for tree in modules().values():
        for call in nodes(tree, ast.Call):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "record_failure":
                yield from (each.arg for each in call.keywords if each.arg)


_BUILT: Mapping[str, Callable[[], Iterable[str]]] = {
    "f'token.{outcome.result}'": lambda: [f"token.{each}" for each in _PUBLISHED]
}
"""Names of events that are put together."""
_SPREAD: Mapping[str, Callable[[], Iterable[str]]] = {
    "token.fields()": lambda: app_jwt().fields(),
    "fields": _of_failed_uses,  # worker.vault.outage: what its callers hand over
}
"""Fields that are handed over as a mapping."""
