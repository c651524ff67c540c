"""Log and reports with no reader, on a full disk, or on closed streams: the work is done all the same."""

import json
import os
import pty
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.processes import Reader, Scene, eventually, scene, small_pipe

ACCOUNTS = ["le81823118", "12345678"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "world") as made:
        yield made


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=5) as answer:
        return str(answer.read(), "utf-8")


# The daemon's log


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    with scene(tmp_path / "world", life=8) as world:
        for account in ACCOUNTS:
            world.add_account(account)
        out, into = small_pipe()
        changes = {"APPJWT_LOG_LEVEL": "debug", "APPJWT_HTTP_LISTEN": "127.0.0.1:0"}
        process = world.start(changes=changes, stderr=into)
        os.close(into)
        with os.fdopen(out, "rb") as rest:
            eventually(lambda: all(world.openbao.get_token(account) for account in ACCOUNTS))
            with Reader(world, ACCOUNTS) as reader:
                eventually(lambda: all(len(reader.seen.get(account, [])) > 3 for account in ACCOUNTS))
            assert reader.failures == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert world.logins() == []
            log = rest.read().decode()
        world.keep(log)
        assert "worker.started" in [json.loads(line)["event"] for line in log.splitlines()[:5]]


@pytest.mark.tool("unshare")
def test_after_a_full_disk_each_line_is_one_again_and_the_lost_ones_are_counted(world: Scene, tmp_path: Path) -> None:
    """The log is a file of a separate file system of 64 KiB."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    world.add_account(ACCOUNTS[0])
    disk = tmp_path / "disk"
    disk.mkdir()
    changes = {
        "APPJWT_LOG_LEVEL": "debug",
        "APPJWT_HTTP_LISTEN": "127.0.0.1:0",
        "APPJWT_ACCOUNTS_SYNC_INTERVAL": "1s",
    }
    script = 'mount -t tmpfs -o size=64k none "$0" && exec "$@" 2>>"$0/log"'
    process = world.start(behind=["unshare", "-rm", "sh", "-c", script, str(disk)], changes=changes)
    inside = Path(f"/proc/{process.pid}/root{disk}")

    def lines() -> list[bytes]:
        file = inside / "log"
        return file.read_bytes().rpartition(b"\n")[0].splitlines() if file.exists() else []

    def dropped() -> int:
        (count,) = re.findall(r"^appjwt_log_lines_dropped_total (\S+)$", get(address, "metrics"), re.MULTILINE)
        return int(float(count))

    started = eventually(lambda: [line for line in lines() if b"worker.started" in line])
    address = json.loads(started[0])["http"]
    eventually(lambda: [line for line in lines() if b"worker.ready" in line])
    assert dropped() == 0
    with (inside / "filler").open("wb", buffering=0) as filler, suppress(OSError):  # until there is no space left
        while True:
            filler.write(bytes(4096))
    eventually(lambda: dropped() > 3)
    (inside / "filler").unlink()
    eventually(lambda: [line for line in lines() if b"worker.log_lines_dropped" in line])
    process.send_signal(signal.SIGTERM)
    log = lines()
    assert process.wait(20) == 0
    world.keep(b"\n".join(log).decode())
    (at,) = [number for number, line in enumerate(log) if b"worker.log_lines_dropped" in line]
    whole = [json.loads(line) for number, line in enumerate(log) if number != at - 1]  # before it is the cut one
    assert next(line["count"] for line in whole if "count" in line) > 3
    with pytest.raises(json.JSONDecodeError):
        json.loads(log[at - 1])


# What a mode prints


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("streams")) as made:
        for account in ACCOUNTS:
            made.add_account(account)
        assert made.call("--refresh-all").status == 0
        yield made


def shell(world: Scene, flags: str, redirections: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command with these redirections."""
    done = world.call(*flags.split(), behind=["sh", "-c", f'"$@" {redirections}', "sh"])
    return done.status, done.out, done.err


NO_SPACE = "appjwt-worker: cannot write to stdout: no space left on device\n"


@pytest.mark.parametrize(
    ("redirections", "err"),
    [
        (">/dev/full", NO_SPACE),
        (">/dev/full 2>/dev/full", ""),
        (">&-", ""),
        ("2>&-", ""),
        ("<&- >&- 2>&-", ""),
        ("2>/dev/full", ""),
    ],
)
def test_a_report_that_cannot_be_written_changes_nothing_of_what_is_done(
    redirections: str, err: str, made: Scene
) -> None:
    before = made.openbao.get_token(ACCOUNTS[0])
    made.liveperson.token_life += timedelta(seconds=1)  # a token of the same second and life would end no later
    status, out, said = shell(made, f"--refresh {ACCOUNTS[0]}", redirections)
    assert (status, said) == (0, err)
    assert ("1 refreshed" in out) is (">&-" not in redirections.split() and ">/dev/full" not in redirections.split())
    assert made.openbao.get_token(ACCOUNTS[0]) != before
    assert made.logins() == []


@pytest.mark.parametrize("redirections", [">/dev/full", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("flags", "status"),
    [("--refresh unknown", 1), ("--status", 0), ("--check", 0), ("--help", 0), ("--version", 0), ("--wrong", 2)],
)
def test_the_exit_status_is_that_of_the_work(flags: str, status: int, redirections: str, made: Scene) -> None:
    ended, _, err = shell(made, flags, redirections)
    assert ended == status
    assert "Exception" not in err
    assert flags != "--status" or redirections != ">/dev/full" or err == NO_SPACE


def test_a_reader_that_has_gone_is_no_failure(made: Scene) -> None:
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(
        made.command("--status"), env=made.environment(), stdout=into, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(into)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_connection_gets_the_number_of_a_stream_that_was_closed(world: Scene) -> None:
    """Otherwise, output would be sent to Vault."""
    world.add_account(ACCOUNTS[0])
    changes = {"APPJWT_LOG_LEVEL": "debug"}
    process = world.start(behind=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"], changes=changes)
    eventually(lambda: world.openbao.get_token(ACCOUNTS[0]))
    assert {str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)} == {"/dev/null"}
    process.terminate()
    assert process.wait(20) == 0
    assert world.logins() == []


def test_a_mode_loses_no_line_of_its_log_however_slow_the_reader_is(world: Scene) -> None:
    """It waits, also at its end, as any command does."""
    names = [f"le4427{number:04}" for number in range(150)]
    for name in names:
        world.openbao.put_account(name, {"client_id": "some"})
    out, into = small_pipe()
    process = world.start("--refresh-all", stdout=subprocess.PIPE, stderr=into)
    os.close(into)
    assert process.stdout
    report = process.stdout.read(100)  # the work is done
    time.sleep(1.5)  # longer than the end of the daemon waits
    with os.fdopen(out) as log:
        lines = [json.loads(line) for line in log]
    report += process.communicate()[0]
    assert process.returncode == 1
    assert f"{len(names)} failed" in report.decode()
    assert sorted(line["account"] for line in lines if line["event"] == "refresh.failed") == names


def test_sigterm_ends_a_mode_that_waits_for_the_reader_of_its_log(world: Scene) -> None:
    for number in range(150):
        world.openbao.put_account(f"le4427{number:04}", {"client_id": "some"})
    out, into = small_pipe()
    process = world.start("--refresh-all", stdout=subprocess.PIPE, stderr=into)
    os.close(into)
    assert process.stdout
    report = process.stdout.read(100)
    process.terminate()
    report += process.communicate()[0]
    with os.fdopen(out) as log:
        world.keep(report.decode(), log.read())
    assert process.returncode in (1, 130)  # it came while the login was revoked, or later
    assert "150 failed" in report.decode()
    assert world.logins() == []


# A terminal


def on_a_terminal(world: Scene, *flags: str, **changes: str) -> tuple[int, str]:
    """Exit status, and what a terminal of 200 columns shows of stdout, without its colours."""
    ours, theirs = pty.openpty()
    environment = world.environment({"TERM": "xterm", "COLUMNS": "200", **changes})
    with subprocess.Popen(world.command(*flags), env=environment, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert process.stderr
        err = process.stderr.read()
    world.keep(err.decode(), shown.decode("latin-1"))
    return process.returncode, re.sub(r"\x1b\[[0-9;]*m", "", shown.decode(changes.get("PYTHONIOENCODING", "utf-8")))


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "━" * 12), ("latin-1", "-" * 12), ("ascii", "-" * 12)])
def test_a_terminal_without_the_bars_character_gets_another(encoding: str, bar: str, made: Scene) -> None:
    status, shown = on_a_terminal(made, "--status", PYTHONIOENCODING=encoding)
    assert status == 0
    assert all(re.search(rf"^{account} +ok +{bar} ", shown, re.MULTILINE) for account in ACCOUNTS)


ODD = ["[/red]", "[bold]le1[/bold]", ":warning:", "[link=example.com]le1", "\\[x]", "%s{}$HOME"]


def test_what_comes_from_outside_is_shown_as_it_is(world: Scene) -> None:
    world.add_account(ACCOUNTS[0])
    for name in ODD:
        world.openbao.put_account(name, {"client_id": "some"})
    status, shown = on_a_terminal(world, "--status")
    assert status == 1
    assert [line.split()[0] for line in shown.splitlines()[1:-2]] == sorted([ACCOUNTS[0], *ODD])
    for flags in (["--refresh", *ODD], ["--refresh-all"], ["--check"]):
        status, shown = on_a_terminal(world, *flags)
        assert status == 1
        assert all(name in shown for name in ODD)
