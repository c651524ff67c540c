"""`make screenshots`: the status page and --status, as they look with some accounts in trouble; into docs/images/."""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import requests
from rich.console import Console
from rich.text import Text

from sandbox.faults import Fault
from sandbox.world import World

_FOLDER = Path("docs", "images")
_LIFE = timedelta(minutes=10)
_SIZES = {"page": (1180, 560), "page-phone": (500, 760)}
_QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
CHROMIUM += [f"--disable-{what}" for what in _QUIET]


def main() -> int:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, troubled(Path(folder)) as (world, url):
        for name, (width, height) in _SIZES.items():
            shoot(url, _FOLDER / f"{name}.png", width, height)
        html = Path(folder, "status.html")
        html.write_text(_terminal(world))
        shoot(html.as_uri(), _FOLDER / "status.png", 1290, 320)
    return 0


@contextlib.contextmanager
def troubled(folder: Path) -> Iterator[tuple[World, str]]:
    """Run a world with a daemon that has met one fault of each kind; yield it and the address of its page."""
    with World(folder, token_life=_LIFE) as world:
        world.settings |= {"APPJWT_HTTP_LISTEN": "127.0.0.1:0", "APPJWT_LOG_FORMAT": "json"}
        for number in range(6):
            world.add_account(f"le8182311{number}", "va" if number % 2 else "lo")
        world.add_account("brand/eu/shop", account_id="12345678")
        world.liveperson.faults.set(Fault(status=401, body=b'{"error": "invalid_client"}'), account="le81823113")
        world.liveperson.faults.set(Fault(claims={"azp": "another-app"}), account="le81823114")
        world.add_account("le90000001", client_secret="")
        world.add_account("le90000002", enabled=False)
        log = folder / "log"
        with (
            log.open("wb") as out,
            subprocess.Popen(world.command(), env=world.environment(), stdout=out, stderr=subprocess.STDOUT) as worker,
        ):
            try:
                while not (match := re.search(r'"http": ?"([^"]+)"', log.read_text())):
                    time.sleep(0.1)
                url = f"http://{match[1]}/"
                while requests.get(f"{url}status.json", timeout=5).text.count('"next_attempt": "') < 8:  # noqa: PLR2004
                    time.sleep(0.2)
                time.sleep(4)
                yield world, url
            finally:
                worker.terminate()


def shoot(url: str, file: Path, width: int, height: int) -> None:
    """Take a picture of a page by Chromium."""
    with tempfile.TemporaryDirectory() as profile:
        flags = [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={file.resolve()}"]
        subprocess.run([*CHROMIUM, *flags, url], check=True, capture_output=True, timeout=60)


def _terminal(world: World) -> str:
    environment = {**world.environment(), "FORCE_COLOR": "1", "COLUMNS": "128"}
    done = subprocess.run(world.command("--status"), env=environment, capture_output=True, text=True, check=False)
    console = Console(record=True, width=128, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ appjwt-worker --status\n" + done.stdout))
    return console.export_html(inline_styles=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
