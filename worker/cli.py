"""Flags -> a mode, and its exit status.

The only module with late imports: `--version`, `--help` and wrong flags answer before the libraries load.
"""

import argparse
import difflib
import gc
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.wiring import Parts

OK, ACCOUNT_FAILED, WRONG_INPUT, VAULT_UNUSABLE = 0, 1, 2, 3
_INTERRUPTED = 130  # what a shell says of Ctrl-C
_FORBIDDEN = 403

_ABOUT = """\
Keeps a live LivePerson AppJWT for every account in HashiCorp Vault or OpenBao.

Without a mode it is the daemon: it watches the accounts in Vault, gets each AppJWT
from LivePerson Sentinel well before its hour is over and writes it back to Vault.
"""

_MORE = """\
exit status: 0 all well, 1 an account failed (--status: one has no live token),
2 wrong flags or settings, 3 Vault cannot be used. SIGTERM or Ctrl-C ends the
daemon, with 0.

Settings come from the environment (APPJWT_VAULT_ADDRESS and so on) and from a TOML
file; the environment wins. config/worker.toml lists all of them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mode that the flags ask for; its exit status."""
    parser = _parser()
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        near = difflib.get_close_matches(unknown[0], re.findall(r"--[a-z-]+", parser.format_help()), n=1)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
    manual = flags.refresh or flags.refresh_all
    if flags.output and not (manual or flags.status or flags.check):
        parser.error("--output goes with --refresh, --refresh-all, --status or --check")
    if (flags.if_less_than is not None or flags.dry_run) and not manual:
        parser.error(f"{'--dry-run' if flags.dry_run else '--if-less-than'} goes with --refresh or --refresh-all")
    if not (manual or flags.status or flags.check):
        # until the daemon has handlers of its own, there is nothing to be ended in order
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: os._exit(OK))
    try:
        return _run(flags)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ACCOUNT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appjwt-worker",
        usage="%(prog)s [--refresh ACCOUNT... | --refresh-all | --status | --check] [options]",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--refresh",
        metavar="ACCOUNT",
        nargs="+",
        action="extend",
        help="get and write new tokens for these accounts now, whatever the schedule says",
    )
    modes.add_argument("--refresh-all", action="store_true", help="the same for every account")
    modes.add_argument("--status", action="store_true", help="how every account stands, from Vault alone")
    modes.add_argument(
        "--check", action="store_true", help="what has to be right first: Vault, rights, accounts, hosts"
    )
    parser.add_argument(
        "--if-less-than",
        metavar="TIME",
        type=_life,
        help="with a refresh: only where less life than that is left, such as 20m",
    )
    parser.add_argument("--dry-run", action="store_true", help="with a refresh: only say which, and why")
    parser.add_argument("--output", choices=("table", "json"), help="how a mode reports on stdout (default: table)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file (default: $APPJWT_CONFIG, else /etc/appjwt-worker/worker.toml if there)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('appjwt-worker')}")
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
        parts = wiring.build(loaded)
    except settings.SettingsError as error:
        return _complain(str(error), WRONG_INPUT)
    if mode is None:
        return _daemon(loaded, parts)
    from worker.core.errors import RefreshError

    try:
        return mode(flags, loaded, parts)
    except RefreshError as error:
        hint = "; --check tells which right is missing" if error.status == _FORBIDDEN and not error.remedy else ""
        return _complain(f"Vault cannot be used: {error}{hint}", VAULT_UNUSABLE)
    finally:
        parts.session.login.close()


def _daemon(loaded: "Settings", parts: "Parts") -> int:
    from worker import daemon, serving, settings

    try:
        made, clockwork, http = serving.build(loaded, parts)
    except settings.SettingsError as error:
        return _complain(str(error), WRONG_INPUT)
    if not daemon.run(made, clockwork, parts.pool, http, parts.session.login.close):
        os._exit(OK)  # threads that still wait for an answer would hold the interpreter
    return OK


def _refresh(flags: argparse.Namespace, settings: "Settings", parts: "Parts") -> int:
    from dataclasses import asdict

    from worker import wiring
    from worker.ops import terminal
    from worker.refresh import ByHand

    parts.session.login.keep_alive()
    names = flags.refresh or sorted(parts.accounts.names())
    less_than = float("inf") if flags.if_less_than is None else flags.if_less_than
    by_hand = ByHand(less_than, dry_run=flags.dry_run)
    with terminal.progress_bar("refreshing", len(names), shown=flags.refresh_all) as progress:
        lines = wiring.manual_refresh(parts, by_hand).run(names, progress, named=not flags.refresh_all)
    rows = [asdict(line) for line in lines]
    refreshed, failed = (sum(row["outcome"] == result for row in rows) for result in ("refreshed", "failed"))
    counts = {"refreshed": refreshed, "failed": failed, "skipped": len(rows) - refreshed - failed}
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    if flags.dry_run:
        due = sum(row["outcome"] == "skipped" and row["reason"] is not None for row in rows)
        summary = f"dry run: {due} would be refreshed, for the reason given; {failed} could not be"
    _print(flags, {"accounts": rows, **counts}, rows, summary if rows else _no_account(settings))
    return ACCOUNT_FAILED if failed else OK


def _status(flags: argparse.Namespace, settings: "Settings", parts: "Parts") -> int:
    from dataclasses import asdict

    from worker import status
    from worker.ops import terminal

    parts.session.login.keep_alive()
    lines = status.lines(parts.accounts.names(), parts.tokens, parts.pool)
    rows = [asdict(line) for line in lines]
    ended = sum(not line.is_well for line in lines)
    summary = f"{_counted(len(rows), 'account')}, {ended} without a live token"
    if rows and flags.output != "json" and terminal.show_status(rows):
        print(f"\n{summary}")
    else:
        _print(flags, {"accounts": rows}, rows, summary if rows else _no_account(settings))
    return ACCOUNT_FAILED if ended else OK


def _check(flags: argparse.Namespace, settings: "Settings", parts: "Parts") -> int:
    from dataclasses import asdict

    from worker import wiring

    lines = list(wiring.preflight(settings, parts).run())
    rows = [asdict(line) for line in lines]
    failed = [line.check for line in lines if not line.ok]
    _print(flags, {"checks": rows}, rows, f"{_counted(len(rows) - len(failed), 'check')} passed, {len(failed)} did not")
    if {"vault", "login"} & {*failed}:
        return VAULT_UNUSABLE
    return ACCOUNT_FAILED if failed else OK


def _print(flags: argparse.Namespace, document: dict[str, Any], rows: list[dict[str, Any]], summary: str) -> None:
    from worker.ops import terminal

    if flags.output == "json":
        print(terminal.as_json(document))
    else:
        print(*([terminal.as_table(rows)] if rows else []), summary, sep="\n\n")
    sys.stdout.flush()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _no_account(settings: "Settings") -> str:
    return f"there is no account below {settings.accounts.mount}/{settings.accounts.prefix}"


def _life(text: str) -> float:
    """Seconds."""
    from worker.values import duration

    try:
        return duration(text).total_seconds()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _complain(text: str, status: int) -> int:
    from worker.core.redact import redacted

    for line in text.splitlines():
        print(f"appjwt-worker: {redacted(line)}", file=sys.stderr)
    return status
