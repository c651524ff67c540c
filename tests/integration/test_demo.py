"""`make demo` works as its screen describes, in both forms."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.integration.processes import eventually

_SECONDS = 25
"""Enough for each token of 20 s to be replaced."""


class Demo:
    def __init__(self, process: "subprocess.Popen[bytes]", screen: Path) -> None:
        self.process = process
        self.screen = screen

    def shows(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.screen.read_text())


@contextmanager
def running(seconds: int, screen: Path) -> Iterator[Demo]:
    with screen.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.demo"],
            env={**os.environ, "DEMO_SECONDS": str(seconds)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Demo(process, screen)
    finally:
        if process.poll() is None:
            process.terminate()  # it stops its servers
        process.wait(30)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Demo]]:
    """Start both forms at once, by their seconds: each is mostly waited for."""
    folder = tmp_path_factory.mktemp("demo")
    with ExitStack() as stack:
        yield {
            seconds: stack.enter_context(running(seconds, folder / f"screen-{seconds}")) for seconds in (_SECONDS, 0)
        }


@pytest.fixture
def demo(request: pytest.FixtureRequest, demos: dict[int, Demo]) -> Iterator[Demo]:
    """Yield one that is to end well."""
    demo = demos[request.param]
    yield demo
    assert demo.process.wait(90) == 0, demo.screen.read_text()
    assert "Traceback" not in demo.screen.read_text()


@pytest.mark.parametrize("demo", [_SECONDS], indirect=True)
def test_every_token_is_replaced_before_a_reader_sees_it_end(demo: Demo) -> None:
    assert eventually(lambda: demo.shows(r"expired reads +(\d+)\n"), within=90)[1] == "0"


@pytest.mark.parametrize("demo", [0], indirect=True)
def test_without_an_end_it_has_a_page_and_a_login_to_play_with(demo: Demo) -> None:
    page = eventually(lambda: demo.shows(r"its page is at (http://\S+)"))
    login = eventually(lambda: demo.shows(r"    (\. \S+/operator\.env; appjwt-worker --status)\n"))
    new = eventually(lambda: demo.shows(r"    (bao kv put .+)\n"))
    assert "le81823118" in requests.get(page[1], timeout=10).text
    gone = "bao kv metadata delete -mount=secret liveperson/tokens/12345678"
    command = f"{login[1]}; {new[1]}; {gone}; appjwt-worker --status"
    status = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "le55555555" in status.stdout, status
    assert eventually(lambda: demo.shows(r" no token"))
    demo.process.send_signal(signal.SIGINT)
