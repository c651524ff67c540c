"""Slow scenarios of a file: they run side by side, begun before its first test, and each is checked by a test."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

Settled = Callable[[], None]
"""To be called once a scenario has started its processes and mostly waits."""
Scenario = Callable[[Path, Settled], None]
Scenarios = Mapping[Scenario, str | None]
"""Each with the system tool that it needs."""


def for_each(scenarios: Scenarios) -> pytest.MarkDecorator:
    """Return the parameters `name` of a test that checks one of them."""
    marked = {made.__name__: [pytest.mark.tool(tool)] if tool else [] for made, tool in scenarios.items()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in marked.items()])


@contextmanager
def begun(
    scenarios: Scenarios, request: pytest.FixtureRequest, folders: pytest.TempPathFactory, at_once: int | None = None
) -> Iterator[dict[str, Future[None]]]:
    """Start those that a test of this file is to check, and wait until they have settled; the results by name.

    :param at_once: how many run side by side; None = all of them.
    """
    here = (item for item in request.session.items if item.path == request.path)
    chosen = {item.callspec.params.get("name") for item in here if hasattr(item, "callspec")}
    runnable = [
        made for made, tool in scenarios.items() if made.__name__ in chosen and (tool is None or shutil.which(tool))
    ]
    with ThreadPoolExecutor(at_once or max(len(runnable), 1)) as pool:
        settled = {made: threading.Event() for made in runnable}
        results = {
            made.__name__: pool.submit(_run, made, folders.mktemp(made.__name__[:20]), event)
            for made, event in settled.items()
        }
        for event in settled.values():
            event.wait()
        yield results


def _run(scenario: Scenario, folder: Path, settled: threading.Event) -> None:
    try:
        scenario(folder, settled.set)
    finally:
        settled.set()
