"""The flags: the text of --help, errors of one sentence, and that both answer at once."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from worker import cli, process, serving
from worker.schedule.dispatch import Pool

FLAGS = [
    *("--help", "--refresh", "--refresh-all", "--status", "--check"),
    *("--expires-within", "--dry-run", "--output", "--config", "--version"),
]
"""All flags there are; a new one is to be added here and must then be in --help."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:  # raised by argparse, or here with what main returns
        sys.exit(cli.main(arguments))
    return cast("int", ended.value.code), *capsys.readouterr()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the signals' handlers: a mode sets others."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def test_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) < 80


def test_help_names_every_flag_and_there_are_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", out)) == set(FLAGS)
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", out, re.MULTILINE)) == set(FLAGS)


def test_help_explains_every_exit_status_and_where_settings_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    text = " ".join(out.split())
    for words in (
        "0 all well",
        "1 an account failed",
        "2 wrong flags or settings",
        "3 Vault cannot be used",
        "APPJWT_VAULT_ADDRESS",
        "$APPJWT_CONFIG",
        "worker.toml",
    ):
        assert words in text


def test_version_says_name_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"appjwt-worker {version('appjwt-worker')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["le81823118"], "unrecognized arguments: le81823118"),
        (["--refresh"], "argument --refresh: expected at least one argument"),
        (["--refresh", "a", "--refresh-all"], "argument --refresh-all: not allowed with argument --refresh"),
        (["--refresh", "a", "--status"], "argument --status: not allowed with argument --refresh"),
        (["--refresh", "a", "--check"], "argument --check: not allowed with argument --refresh"),
        (["--refresh-all", "--status"], "argument --status: not allowed with argument --refresh-all"),
        (["--refresh-all", "--check"], "argument --check: not allowed with argument --refresh-all"),
        (["--status", "--check"], "argument --check: not allowed with argument --status"),
        (["--dry-run"], "--dry-run goes with --refresh or --refresh-all"),
        (["--dry-run", "--status"], "--dry-run goes with --refresh or --refresh-all"),
        (["--expires-within", "20m", "--check"], "--expires-within goes with --refresh or --refresh-all"),
        (["--expires-within", "0s"], "--expires-within goes with --refresh or --refresh-all"),
        (["--expires-within", "20", "--refresh-all"], "argument --expires-within: must be a duration such as 90s, 20m"),
        (["--if-less-then", "20m"], "unrecognized arguments: --if-less-then 20m; did you mean --expires-within?"),
        (["refresh", "le400"], "unrecognized arguments: refresh le400; did you mean --refresh?"),
        (["--refresh-all", "a"], "unrecognized arguments: a"),
        (["--refr", "a"], "unrecognized arguments: --refr a"),
        (["--output", "json"], "--output goes with --refresh, --refresh-all, --status or --check"),
        (["--refresh-all", "--output", "yaml"], "argument --output: invalid choice: 'yaml' (choose from "),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_wrong_flags_end_with_2_and_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    usage, *_, last = err.splitlines()
    assert usage.startswith("usage: appjwt-worker")
    assert last.startswith(f"appjwt-worker: error: {sentence}")


def test_wrong_settings_end_with_2_and_a_line_per_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPJWT_LOG_LEVEL", "loud")
    for arguments in ([], ["--refresh-all", "--output", "json"]):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.splitlines() == [
            "appjwt-worker: vault.address (APPJWT_VAULT_ADDRESS): missing",
            "appjwt-worker: log.level (APPJWT_LOG_LEVEL): input should be 'debug', 'info', 'warning' or 'error'",
        ]


def test_a_file_that_is_not_there_ends_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    text = f"appjwt-worker: {path}: cannot be read: no such file or directory\n"
    assert run(capsys, "--config", str(path)) == (2, "", text)


def test_a_daemon_without_a_thread_for_its_first_job_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first sync would be lost without a repetition: up, never ready, and alive for the probe."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def again(error: Exception) -> NoReturn:
        raise ConnectionAbortedError(str(error))

    started: list[str] = []
    timer = SimpleNamespace(start=lambda: started.append("timer"))
    monkeypatch.setattr(serving, "build", lambda *_: (None, timer, None, None))
    monkeypatch.setattr(process, "restart", again)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(ConnectionAbortedError, match="can't start new thread"):
        cli._daemon(cast("Any", None), cast("Any", SimpleNamespace(pool=Pool(1))))  # noqa: SLF001 - no process around it
    assert started == []


@pytest.mark.parametrize("flag", ["--version", "--help", "--wrong"])
def test_it_answers_before_the_libraries_are_loaded(flag: str) -> None:
    code = f"""
import sys
from worker import cli
try:
    cli.main([{flag!r}])
except SystemExit:
    print(*{{"hvac", "requests", "pydantic", "structlog", "rich", "apscheduler", "jwt"}} & sys.modules.keys())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.splitlines()[-1] == ""
