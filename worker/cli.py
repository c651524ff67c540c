"""Flags -> a mode, and its exit status.

The only module with late imports: `--version`, `--help` and wrong flags answer before the libraries load.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.wiring import Parts

OK, ACCOUNT_FAILED, WRONG_INPUT, VAULT_UNUSABLE = 0, 1, 2, 3
_INTERRUPTED = 130  # what a shell says of Ctrl-C

_ABOUT = """\
Keeps a live LivePerson AppJWT for every account in HashiCorp Vault or OpenBao.

Without a mode it is the daemon: it watches the accounts in Vault, gets each AppJWT
from LivePerson Sentinel well before its hour is over and writes it back to Vault.
"""

_MORE = """\
exit status: 0 all well, 1 an account failed, 2 wrong flags or settings,
3 Vault cannot be used. SIGTERM or Ctrl-C ends the daemon, with 0.

Settings come from the environment (APPJWT_VAULT_ADDRESS and so on) and from a TOML
file; the environment wins. config/worker.toml lists all of them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mode that the flags ask for; its exit status."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.output and not (flags.refresh or flags.refresh_all):
        parser.error("--output goes with --refresh or --refresh-all")
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
        usage="%(prog)s [--config FILE] [--refresh ACCOUNT... | --refresh-all] [--output table|json]",
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
    from worker import settings, wiring
    from worker.ops import logs

    manual = bool(flags.refresh or flags.refresh_all)
    try:
        loaded = settings.load(flags.config)
        quiet = manual and "level" not in loaded.log.model_fields_set
        logs.configure("warning" if quiet else loaded.log.level, loaded.log.format)
        parts = wiring.build(loaded)
    except settings.SettingsError as error:
        return _complain(str(error), WRONG_INPUT)
    return _refresh(flags, parts) if manual else _daemon(loaded, parts)


def _daemon(settings: "Settings", parts: "Parts") -> int:
    from worker import daemon, wiring

    made, clockwork = wiring.daemon(settings, parts)
    if not daemon.run(made, clockwork, parts.pool, parts.session.close):
        os._exit(OK)  # threads that still wait for an answer would hold the interpreter
    return OK


def _refresh(flags: argparse.Namespace, parts: "Parts") -> int:
    from dataclasses import asdict

    from worker import wiring
    from worker.core.errors import RefreshError
    from worker.ops import terminal

    try:
        parts.session.keep_alive()
        names = flags.refresh or sorted(parts.accounts.names())
        with terminal.progress_bar("refreshing", len(names), shown=flags.refresh_all) as progress:
            rows = [asdict(line) for line in wiring.manual_refresh(parts).run(names, progress)]
    except RefreshError as error:
        return _complain(f"Vault cannot be used: {error}", VAULT_UNUSABLE)
    finally:
        parts.session.close()
    refreshed, failed = (sum(row["outcome"] == result for row in rows) for result in ("refreshed", "failed"))
    counts = {"refreshed": refreshed, "failed": failed, "skipped": len(rows) - refreshed - failed}
    if flags.output == "json":
        print(terminal.as_json({"accounts": rows, **counts}))
    else:
        print(terminal.as_table(rows), ", ".join(f"{count} {what}" for what, count in counts.items()), sep="\n\n")
    sys.stdout.flush()
    return ACCOUNT_FAILED if failed else OK


def _complain(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"appjwt-worker: {line}", file=sys.stderr)
    return status
