"""One line per event, from any source, in one form, and never a secret."""

import logging
import re
import secrets
import sys
import threading
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import structlog

from tests.builders import SAMPLE
from tests.unit.ops.log import Log, Stream, Terminal
from worker.core.outcome import State
from worker.core.redact import REDACTED
from worker.ops import logs

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

logger: "BoundLogger" = structlog.get_logger()


def nested(error: Exception) -> Exception:
    """Return the error as it looks when it was raised and caught."""
    try:
        raise error
    except type(error) as raised:
        return raised


# The form


def test_a_line_is_a_json_object_with_time_level_and_event_first(log: Log) -> None:
    before = datetime.now(UTC)
    logger.warning("any.event", account="le1", state=State.FAILING, left=1.5, nothing=None)
    (line,) = log.lines
    assert list(line) == ["timestamp", "level", "event", "account", "state", "left"]
    assert line["timestamp"].endswith("Z")
    assert timedelta() <= datetime.fromisoformat(line.pop("timestamp")) - before < timedelta(seconds=5)
    assert line == {"level": "warning", "event": "any.event", "account": "le1", "state": "failing", "left": 1.5}


def test_each_event_is_one_line_whatever_is_in_it(log: Log) -> None:
    logger.info("two\nlines", field="more\r\nlines\u2028here\x85")
    logger.info("next")
    assert [line["event"] for line in log.lines] == ["two lines", "next"]
    assert log.lines[0]["field"] == "more lines here"
    assert log.text.count("\n") == 2


@pytest.mark.parametrize(("level", "logged"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_said_by_anybody(level: str, logged: int, log: Log) -> None:
    names = ["debug", "info", "warning", "error"]
    log.set_up(level)
    for name in names:
        getattr(logger, name)("ours")
    assert [line["level"] for line in log.lines] == names[-logged:]
    log.set_up(level)
    for name in names:
        getattr(logging.getLogger("some.package"), name)("theirs")
    assert [line["level"] for line in log.lines] == names[-logged:]


@pytest.mark.parametrize("library", ["apscheduler.scheduler", "urllib3.util.retry", "hvac.adapters"])
@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_chatty_libraries_speak_from_warnings_up_unless_debugging(
    library: str, level: str, logged: list[str], log: Log
) -> None:
    log.set_up(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(library), name)("theirs")
    assert [line["level"] for line in log.lines] == logged


def test_a_librarys_line_has_the_same_form(log: Log) -> None:
    logging.getLogger("urllib3.util.retry").warning("Retrying (%r) after %s", 3, "a reset", extra={"host": "va"})
    assert list(log.lines[0])[:3] == ["timestamp", "level", "event"]
    assert log.only_line() == {"level": "warning", "event": "Retrying (3) after a reset", "host": "va"}


def test_a_librarys_exception_is_in_its_line(log: Log) -> None:
    logging.getLogger("apscheduler.executors.default").error(
        'Job "%s" raised an exception', "x", exc_info=nested(KeyError("y"))
    )
    line = log.only_line()
    assert re.fullmatch(r"Traceback .*\n(  .*\n)+KeyError: 'y'", line.pop("exception"))
    assert line == {"level": "error", "event": 'Job "x" raised an exception'}


def test_ours_too_with_its_cause(log: Log) -> None:
    error = RuntimeError("outer")
    error.__cause__ = nested(ValueError("inner"))
    logger.error("failed", exc_info=error)
    traceback = log.only_line()["exception"].splitlines()
    assert "ValueError: inner" in traceback
    assert traceback[-1] == "RuntimeError: outer"
    assert any(line.startswith("  File") for line in traceback)


def test_set_up_twice_each_event_is_said_once(log: Log) -> None:
    stream = Terminal()
    log.set_up(stream=stream)
    log.set_up(stream=stream)
    logger.info("once")
    assert len(log.lines) == 1


# For the eye


def test_the_console_form_says_the_same_to_people(log: Log) -> None:
    log.set_up(style="console")
    logger.info("any.event", account="le1", count=3)
    assert re.fullmatch(r"\S+Z \[info +\] any\.event +account=le1 count=3\n", log.text)


def test_the_console_form_has_the_important_fields_first(log: Log) -> None:
    log.set_up(style="console")
    logger.error(
        "refresh.failed", status=401, failures=3, stage="sentinel", error="answers 401", account="le1", account_id=None
    )
    assert log.text.split(maxsplit=4)[-1] == "account=le1 error='answers 401' stage=sentinel status=401 failures=3\n"


def test_the_console_form_leaves_the_claims_of_a_token_to_the_json_form(log: Log) -> None:
    fields = {"account_id": "le1", "scope": "msg.consumer", "iat": 1, "fingerprint": "ab", "reason": "due"}
    log.set_up(style="console")
    logger.info("token.refreshed", account="le1", **fields)
    assert log.text.split(maxsplit=4)[-1] == "account=le1 reason=due fingerprint=ab\n"
    log.set_up(style="console")
    logger.warning("token.scope_unusual", account="le1", scope="other")  # where they are what it is about
    assert log.text.endswith("account=le1 scope=other\n")


def test_the_console_form_keeps_the_lines_of_a_traceback(log: Log) -> None:
    log.set_up(style="console")
    logger.error("failed", exc_info=nested(ValueError(f"with {SAMPLE}")))
    lines = log.text.splitlines()
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[2].startswith("  File")
    assert lines[-1] == f"ValueError: with {REDACTED}"


@pytest.mark.parametrize(
    ("style", "stream", "coloured"),
    [("auto", Terminal(), True), ("console", Terminal(), True), ("json", Terminal(), False)],
)
def test_on_a_terminal_the_console_form_is_the_default(
    style: str, stream: Terminal, coloured: object, log: Log
) -> None:
    log.set_up(style=style, stream=stream)
    logger.info("any.event")
    assert ("\x1b[" in log.text) is coloured


def test_elsewhere_json_is_the_default(log: Log) -> None:
    log.set_up(style="auto")
    logger.info("any.event")
    assert log.only_line() == {"level": "info", "event": "any.event"}


# Secrets

PLANTED = {
    "an AppJWT": SAMPLE,
    "a Vault token": "hvs." + secrets.token_urlsafe(60),
    "an OpenBao token": "s." + secrets.token_hex(12),
}


@pytest.mark.parametrize("style", ["json", "console", "colours"])
@pytest.mark.parametrize("secret", PLANTED.values(), ids=PLANTED)
def test_a_planted_secret_is_seen_in_no_field_of_any_kind(style: str, secret: str, log: Log) -> None:
    log.set_up(style="auto" if style == "colours" else style, stream=Terminal() if style == "colours" else None)
    fields: dict[str, Any] = {
        "plain": secret,
        "inside": f"Authorization: Bearer {secret}, and more",
        "listed": ["fine", secret, (secret,)],
        "mapped": {"deep": {"deeper": [secret]}, secret: "as a key"},
        "raw": secret.encode(),
        "error": ValueError(secret),
        "kinds": {secret},
    }
    logger.info(secret, **fields)
    logger.error("failed", exc_info=nested(ValueError(f"at {secret}")))
    logging.getLogger("urllib3").warning("header %s", secret, extra={"more": [secret]})
    logging.getLogger("urllib3").error("failed", exc_info=nested(ValueError(secret)))
    assert secret not in log.text
    assert not [secret[at : at + 12] for at in range(len(secret) - 12) if secret[at : at + 12] in log.text]
    assert log.text.count(REDACTED) >= 12


def test_what_is_no_secret_in_a_nested_field_stays_as_it_was(log: Log) -> None:
    logger.info("any", field={"a": [1, None, True, {"b": "c"}], "d": 2.5})
    assert log.only_line()["field"] == {"a": [1, None, True, {"b": "c"}], "d": 2.5}


# What Python would write to stderr by itself

FAULT = f"something with {SAMPLE}"


def fail() -> NoReturn:
    raise ValueError(FAULT)


def only_line_of(log: Log, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert capfd.readouterr() == ("", "")
    assert SAMPLE[:12] not in log.text
    return log.only_line()


def test_a_warning_is_a_line_like_any_other(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.set_up()
        warnings.warn(FAULT, stacklevel=1)
    line = only_line_of(log, capfd)
    assert line["level"] == "warning"
    assert f"UserWarning: something with {REDACTED}" in line["event"]


def test_an_exception_that_nobody_caught_is_too(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    sys.excepthook(ValueError, nested(ValueError(FAULT)), None)
    line = only_line_of(log, capfd)
    assert (line["level"], line["event"], line["where"]) == ("error", "worker.internal_error", "'main'")
    assert line["exception"].endswith(f"ValueError: something with {REDACTED}")


def test_so_is_one_in_a_thread(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=fail, name="some thread")
    thread.start()
    thread.join()
    line = only_line_of(log, capfd)
    assert (line["event"], line["where"]) == ("worker.internal_error", "'some thread'")
    assert line["exception"].endswith(f"ValueError: something with {REDACTED}")


def test_so_is_one_that_cannot_be_raised(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            fail()

    Dying()
    line = only_line_of(log, capfd)
    assert "Dying.__del__" in line["where"]
    assert line["exception"].endswith(f"ValueError: something with {REDACTED}")


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError(FAULT)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_line_that_cannot_be_made_is_told_without_what_was_in_it(
    style: str, log: Log, capfd: pytest.CaptureFixture[str]
) -> None:
    """The logging module would show the message, its arguments and the stack on stderr."""
    for say in (
        lambda: logger.info("any", field=Unprintable(), other=SAMPLE),
        lambda: logging.getLogger("a.package").warning("%d of %s", "three", SAMPLE),
    ):
        log.set_up(style=style)
        say()
        assert capfd.readouterr() == ("", "")
        assert SAMPLE[:12] not in log.text
        assert len(log.text.splitlines()) == 1
        assert "worker.internal_error" in log.text
        assert "a log line failed: " in log.text


def test_a_stream_that_is_gone_takes_nobody_along(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    closed_stream = Stream()
    log.set_up(stream=closed_stream)
    closed_stream.close()
    logger.info("any", field=SAMPLE)
    logs.QUEUE.wait()
    assert capfd.readouterr() == ("", "")
    log.set_up()
    logger.info("next")
    assert [(line["event"], line.get("count")) for line in log.lines] == [
        ("worker.log_lines_dropped", 1),
        ("next", None),
    ]


def test_what_finds_no_handler_is_still_redacted(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()
    logging.getLogger("a.package").warning("with %s", SAMPLE)
    assert only_line_of(log, capfd)["event"] == f"with {REDACTED}"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_library_does_not_quote_headers_that_it_could_not_read(level: str, log: Log) -> None:
    """A server may have put into them what it was sent."""
    log.set_up(level)
    logging.getLogger("urllib3.connection").warning("Failed to parse headers: %s", "X\0: a client_secret")
    assert log.text == ""
