"""Flags -> a mode, and its exit status.

The only module with late imports: `--version`, `--help` and wrong flags answer before the libraries load.
"""

import argparse
import difflib
import gc
import os
import re
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import process

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.wiring import Components

OK, ACCOUNT_FAILED, WRONG_INPUT, VAULT_UNUSABLE = 0, 1, 2, 3
_FORBIDDEN = 403

_DESCRIPTION = """\
Keep a live LivePerson AppJWT for every account in HashiCorp Vault or OpenBao.
Without a mode, run the daemon: it refreshes each token well before its expiry.
"""

_EPILOG = """\
exit status: 0 all well, 1 an account failed or has no live token, or a check
failed, 2 wrong flags or settings, 3 Vault cannot be used, 130 interrupted
settings: the environment (APPJWT_VAULT_ADDRESS, ...) overrides the TOML file
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mode that the flags ask for, and return its exit status."""
    process.open_streams()
    try:
        flags = _parse(arguments)
        is_daemon = not (_is_refresh(flags) or flags.status or flags.check)
        process.exit_on_signals(OK if is_daemon else process.INTERRUPTED, ignore_others=is_daemon)
        try:
            process.require_resources()
        except (RuntimeError, OSError) as error:
            process.restart(error)
        return _run(flags)
    except KeyboardInterrupt:
        process.print_error("interrupted")
        return process.INTERRUPTED
    finally:
        process.flush_streams()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        near = difflib.get_close_matches(unknown[0], re.findall(r"--[a-z-]+", parser.format_help()), n=1)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
    if flags.output and not (_is_refresh(flags) or flags.status or flags.check):
        parser.error("--output goes with --refresh, --refresh-all, --status or --check")
    if (flags.expires_within is not None or flags.dry_run) and not _is_refresh(flags):
        parser.error(f"{'--dry-run' if flags.dry_run else '--expires-within'} goes with --refresh or --refresh-all")
    return flags


def _is_refresh(flags: argparse.Namespace) -> bool:
    return bool(flags.refresh or flags.refresh_all)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appjwt-worker",
        usage="%(prog)s [mode] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=25),
        add_help=False,
        allow_abbrev=False,
    )
    modes = parser.add_argument_group("modes").add_mutually_exclusive_group()
    modes.add_argument(
        "--refresh",
        metavar="ACCOUNT",
        nargs="+",
        action="extend",
        help="obtain and write new tokens for these accounts now",
    )
    modes.add_argument("--refresh-all", action="store_true", help="the same for every account")
    modes.add_argument("--status", action="store_true", help="show account status (reads Vault only)")
    modes.add_argument("--check", action="store_true", help="run preflight checks")
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this help and exit")
    options.add_argument(
        "--expires-within",
        metavar="TIME",
        type=_seconds,
        help="refresh only tokens that expire within TIME: 20m",
    )
    options.add_argument("--dry-run", action="store_true", help="only say which tokens would be refreshed, and why")
    options.add_argument("--output", choices=("table", "json"), help="format of a mode's report (default: table)")
    options.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file with the settings (default: $APPJWT_CONFIG, /etc/appjwt-worker/worker.toml)",
    )
    options.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {version('appjwt-worker')}",
        help="show the version and exit",
    )
    return parser


def _run(flags: argparse.Namespace) -> int:
    gc.disable()  # to look through what libraries make while they load, and keep, is a tenth of the start
    from worker import settings, wiring
    from worker.ops import logs

    gc.enable()
    mode = (
        _status if flags.status else _check if flags.check else _refresh if flags.refresh or flags.refresh_all else None
    )
    logs.configure("warning", "auto")  # until the settings say how: a fault must not go past the redactor
    try:
        loaded = settings.load(flags.config)
        quiet = mode and "level" not in loaded.log.model_fields_set
        logs.configure("warning" if quiet else loaded.log.level, loaded.log.format)
        components = wiring.build(loaded)
    except settings.SettingsError as error:
        process.print_error(str(error))
        return WRONG_INPUT
    if mode is None:
        return _daemon(loaded, components)
    from worker.core.errors import RefreshError

    try:
        try:
            process.interrupt_on_signals()
            status = mode(flags, loaded, components)
        finally:
            signals = process.stop_requests(exit_at_second=True)  # the first does not interrupt what is below
    except RefreshError as error:
        hint = "; --check tells which right is missing" if error.status == _FORBIDDEN and not error.remedy else ""
        process.print_error(f"Vault cannot be used: {error}{hint}")
        status = VAULT_UNUSABLE
    finally:
        _drain(components)  # what runs may still log in
        components.session.close()
    if status != process.INTERRUPTED:
        process.interrupt_on_signals()
        if signals.empty():
            logs.QUEUE.wait()
    return status


def _daemon(loaded: "Settings", components: "Components") -> int:
    from worker import mainloop, serving, settings
    from worker.ops import logs

    try:
        daemon, timer, http, cleanup = serving.build(loaded, components)
        # with one thread of its own, work waits at worst; without any it would be lost
        components.pool.call(lambda: None)
        timer.start()
        if http:
            http.start()
    except settings.SettingsError as error:
        process.print_error(str(error))
        return WRONG_INPUT
    except (RuntimeError, OSError) as error:  # there is less room than a moment ago
        process.restart(error)
    if not mainloop.run(daemon, timer, components.pool, http, components.session.close, cleanup):
        logs.QUEUE.flush()
        os._exit(OK)  # threads that still wait for an answer would hold the interpreter
    return OK


def _refresh(flags: argparse.Namespace, settings: "Settings", components: "Components") -> int:
    from dataclasses import asdict

    from worker import wiring
    from worker.ops import terminal
    from worker.refresh import ForceRefresh

    components.pool.call(components.session.login.keep_alive)
    names = flags.refresh or sorted(components.accounts.names())
    expires_within = float("inf") if flags.expires_within is None else flags.expires_within
    refresh = wiring.manual_refresh(components, ForceRefresh(expires_within, dry_run=flags.dry_run))
    signals = process.stop_requests(exit_at_second=True)
    with terminal.progress_bar("refreshing", len(names), shown=flags.refresh_all) as progress:
        refresh.run(names, progress, lambda: not signals.empty())
    interrupted = "" if signals.empty() else "interrupted: "
    if interrupted:
        process.print_error("interrupted: waiting for the running attempts; interrupt again to end at once")
        refresh.stop()
        _drain(components)
    else:
        process.interrupt_on_signals()
    rows = [asdict(result) for result in refresh.results(named=not flags.refresh_all)]
    refreshed, failed = (sum(row["outcome"] == result for row in rows) for result in ("refreshed", "failed"))
    counts = {"refreshed": refreshed, "failed": failed, "skipped": len(rows) - refreshed - failed}
    summary = interrupted + ", ".join(f"{count} {what}" for what, count in counts.items())
    if flags.dry_run:
        due = sum(row["outcome"] == "skipped" and row["reason"] is not None for row in rows)
        summary = f"{interrupted}dry run: {due} would be refreshed, for the reason given; {failed} could not be"
    table = [{key: value for key, value in row.items() if key != "claims"} for row in rows]
    _show(flags, {"accounts": rows, **counts}, table, summary if rows or interrupted else _no_account(settings))
    return process.INTERRUPTED if interrupted else ACCOUNT_FAILED if failed else OK


def _status(flags: argparse.Namespace, settings: "Settings", components: "Components") -> int:
    from worker import status
    from worker.ops import terminal

    components.pool.call(components.session.login.keep_alive)
    names = components.accounts.names()
    with terminal.progress_bar("reading", len(names), shown=True) as progress:
        statuses = status.statuses(names, components.tokens, components.pool, progress)
    rows = [each.as_json() for each in statuses]
    without_token = sum(not each.is_served for each in statuses)
    summary = f"{_pluralize(len(rows), 'account')}, {without_token} without a live token"
    shown = terminal.status_table(statuses) if rows and flags.output != "json" else None
    if shown:
        process.print_report(f"{shown}\n{summary}")
    else:
        table = [
            {**row, "margin": None if each.margin is None else f"{each.margin:.2f}"}
            for row, each in zip(rows, statuses, strict=True)
        ]
        _show(flags, {"accounts": rows}, table, summary if rows else _no_account(settings))
    return ACCOUNT_FAILED if without_token else OK


def _check(flags: argparse.Namespace, settings: "Settings", components: "Components") -> int:
    from dataclasses import asdict

    from worker import wiring
    from worker.ops import terminal

    with terminal.progress_bar("checking", None, shown=True) as progress:
        results = list(wiring.preflight(settings, components).run(components.pool, progress))
    rows = [asdict(result) for result in results]
    failed = [result.check for result in results if not result.ok]
    _show(flags, {"checks": rows}, rows, f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    if not any(result.check == "login" and result.ok for result in results):
        return VAULT_UNUSABLE
    return ACCOUNT_FAILED if failed else OK


def _drain(components: "Components") -> None:
    """Start no further work, and wait until what runs is done."""
    components.pool.shutdown(wait=False, cancel_futures=True)
    components.pool.join()


def _show(flags: argparse.Namespace, document: dict[str, Any], rows: list[dict[str, Any]], summary: str) -> None:
    from worker.ops import terminal

    if flags.output == "json":
        process.print_report(terminal.as_json(document))
    else:
        process.print_report("\n\n".join([*([terminal.as_table(rows)] if rows else []), summary]))


def _pluralize(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _no_account(settings: "Settings") -> str:
    return f"there is no account below {settings.accounts.path}"


def _seconds(text: str) -> float:
    from worker.values import duration

    try:
        return duration(text).total_seconds()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
