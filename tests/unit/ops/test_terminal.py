"""The output of a mode: tables, JSON, and a bar on terminals only."""

import json
import os

import pytest

from tests.builders import HOUR, ISSUED, SAMPLE
from worker.core.outcome import Result, State
from worker.core.status import AccountStatus
from worker.ops.terminal import as_json, as_table, progress_bar, status_table


def test_a_table_has_columns_as_wide_as_what_is_in_them() -> None:
    rows: list[dict[str, object]] = [
        {"account": "le1", "outcome": Result.REFRESHED, "vault_version": 7},
        {"account": "le81823118/connector-a", "outcome": Result.FAILED, "vault_version": None},
    ]
    assert as_table(rows).splitlines() == [
        "ACCOUNT                 OUTCOME    VAULT VERSION",
        "le1                     refreshed  7",
        "le81823118/connector-a  failed     -",
    ]


def test_a_column_that_is_empty_in_each_row_is_left_out_but_not_one_that_holds_zero() -> None:
    assert as_table([{"a": 0, "b": None}, {"a": False, "b": None}]).splitlines() == ["A", "0", "FAILED"]


def test_a_table_without_rows_is_empty() -> None:
    assert as_table([]) == ""


def test_a_table_has_one_line_per_row_whatever_is_in_it_and_cannot_steer_the_terminal() -> None:
    assert as_table([{"error": "two\nlines \x1b[2J\x07"}]).splitlines() == ["ERROR", "two lines [2J"]


def test_json_says_the_same_with_the_types_kept() -> None:
    document = {
        "accounts": [{"account": "le1", "outcome": Result.FAILED, "remaining": 1.5, "error": None}],
        "failed": 1,
    }
    assert json.loads(as_json(document)) == {
        "accounts": [{"account": "le1", "outcome": "failed", "remaining": 1.5, "error": None}],
        "failed": 1,
    }


def test_neither_form_shows_a_token_from_somebody_elses_error_text() -> None:
    rows = [{"account": "le1", "error": f"said {SAMPLE}"}]
    assert as_table(rows).splitlines()[1] == "le1      said [redacted]"
    assert json.loads(as_json({"accounts": rows}))["accounts"][0]["error"] == "said [redacted]"


@pytest.mark.parametrize("options", [{"shown": True}, {"shown": False}])
def test_where_there_is_no_terminal_there_is_no_bar(
    options: dict[str, bool], capfd: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("refreshing", 2, **options) as progress:
        progress(1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"shown": True}, {"shown": False}])
def test_on_a_terminal_there_is_one_on_stderr_if_it_is_to_be_shown(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "w") as stderr:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stderr)
        with progress_bar("refreshing", 3, **options) as progress:
            progress(2)
        stderr.write("end")
        stderr.flush()
        seen = ""
        while not seen.endswith("end"):
            seen += terminal.read(4096).decode()
    assert ("refreshing" in seen and "2/3" in seen) is options["shown"]
    assert capfd.readouterr().out == ""


YELLOW, RED, GREEN = "\x1b[33m", "\x1b[31m", "\x1b[32m"


@pytest.mark.parametrize(("remaining", "style"), [(300.0, GREEN), (299.0, YELLOW), (120.0, YELLOW), (119.0, RED)])
def test_on_a_terminal_the_colour_of_a_token_is_by_its_margin(
    remaining: float, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    end = ISSUED + HOUR  # and ten minutes before that it was to be replaced
    status = AccountStatus.of(
        "a", State.FAILING, remaining=remaining, issued_at=ISSUED, expires_at=end, refresh_at=end - HOUR / 6
    )
    assert f"{style}0:0" in (status_table([status]) or "")


def test_on_a_narrow_terminal_a_long_name_takes_several_lines_and_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    long = AccountStatus.of("le81823118/" + "x" * 40, State.FAILING, remaining=0.0, last_error="refused " * 9)
    shown = status_table([long]) or ""
    assert all(text in shown for text in ("failing", "none"))
    assert (shown.count("x"), shown.count("refused"), shown.count("…")) == (40, 9, 0)


def test_where_there_is_no_terminal_the_status_is_left_to_the_table() -> None:
    assert status_table([AccountStatus("a", State.OK, 0.0, None)]) is None
