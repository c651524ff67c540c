"""Somebody lays hands on the stored tokens. Two accounts of five are hit; the others must not notice."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests import builders
from tests.chaos.engine import Fault, Row
from tests.chaos.stand import ACCOUNTS, Stand, direct
from tests.chaos.watch import PLANTED
from tests.integration.processes import eventually

_GROUP = "Stored tokens"
_HIT = list(ACCOUNTS)[:2]
_YEAR_2099 = 4070908800


def each(act: Callable[[Stand, str, str], None]) -> Fault:
    """Do this to two accounts, by name and path; the daemon has to repair it."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        for name in _HIT:
            act(stand, name, _path(name))
        yield

    return fault


def seen(act: Callable[[Stand, str, str], None]) -> Fault:
    """Do the same where the daemon reports no repair: a reader's observation shows that it was done."""

    @contextmanager
    def fault(stand: Stand) -> Iterator[None]:
        book = stand.watch.book
        eventually(lambda: all(_version(stand, _path(name)) > 1 for name in _HIT))
        stand.daemon.process.send_signal(signal.SIGSTOP)  # or it may repair it before a reader has seen it
        with each(act)(stand):
            eventually(lambda: book.lost + book.planted)
            stand.daemon.process.send_signal(signal.SIGCONT)
            yield
        stand.bites = book.lost + book.planted

    return fault


def _path(name: str) -> str:
    return f"liveperson/tokens/{name}"


def _version(stand: Stand, path: str) -> int:
    version: int = stand.kv.read_secret_metadata(path)["data"]["current_version"]
    return version


def _data(stand: Stand, path: str, version: int | None = None) -> dict[str, Any]:
    answer = stand.kv.read_secret_version(path, version=version, raise_on_deleted_version=True)
    data: dict[str, Any] = answer["data"]["data"]
    return data


def deleted(stand: Stand, name: str, path: str) -> None:
    del name
    stand.kv.delete_latest_version_of_secret(path)


def destroyed(stand: Stand, name: str, path: str) -> None:
    del name
    stand.kv.destroy_secret_versions(path, [_version(stand, path)])


def undeleted(stand: Stand, name: str, path: str) -> None:
    version, lost = _version(stand, path), stand.watch.book.lost
    deleted(stand, name, path)
    eventually(lambda: stand.watch.book.lost > lost)
    stand.kv.undelete_secret_versions(path, [version])


def rolled_back(stand: Stand, name: str, path: str) -> None:
    """Restore the version before, which is due. Lives are too short here for that to count as a repair."""
    del name
    before = _data(stand, path, _version(stand, path) - 1)
    stand.kv.create_or_update_secret(path, {**before, PLANTED: "yes"})


def without_metadata(stand: Stand, name: str, path: str) -> None:
    del name
    stand.kv.delete_metadata_and_all_versions(path)


def others_token(stand: Stand, name: str, path: str) -> None:
    del name
    other = stand.vault.get_token(list(ACCOUNTS)[-1])
    stand.kv.create_or_update_secret(path, {**(other or {}), PLANTED: "yes"})


def other_data(stand: Stand, name: str, path: str) -> None:
    del name
    stand.kv.create_or_update_secret(path, {"password": "another's", PLANTED: "yes"})


def no_end_beside(stand: Stand, name: str, path: str) -> None:
    del name
    planted_fields = {"exp": str(_YEAR_2099), "expires_at": "2099-01-01T00:00:00Z", PLANTED: "yes"}
    stand.kv.create_or_update_secret(path, {**_data(stand, path), **planted_fields})


def no_end(stand: Stand, name: str, path: str) -> None:
    token = builders.make_token(
        aud=name, azp=stand.watch.accounts[name].client_id, iat=int(time.time()), exp=_YEAR_2099
    )
    stand.kv.create_or_update_secret(path, {**_data(stand, path), "access_token": token, PLANTED: "yes"})


@contextmanager
def foreign(stand: Stand) -> Iterator[None]:
    """Another's secret without any mark of ours: it must stay until its owner takes it away."""
    for name in _HIT:
        without_metadata(stand, name, _path(name))
        other_data(stand, name, _path(name))
    yield
    for name in _HIT:
        assert _version(stand, _path(name)) == 1, "a foreign secret was written over"
        without_metadata(stand, name, _path(name))


def _row(name: str, fault: Callable[[Stand], AbstractContextManager[None]], **more: Any) -> Row:
    return Row(_GROUP, name, direct, fault, **{"sign": "token.repaired", "duration": 0.0, "at_once": True, **more})


ROWS = [
    _row("deleted", each(deleted)),
    _row("destroyed", each(destroyed)),
    _row("deleted and undeleted", seen(undeleted)),
    _row("rolled back", seen(rolled_back), short=True),
    _row("metadata deleted", each(without_metadata)),
    _row("overwritten with another's token", each(others_token)),
    _row("overwritten without managed_by", each(other_data)),
    _row("foreign secret", foreign, says="holds a secret that is not ours", sign="refresh.failed", duration=0.2),
    _row("exp of 2099 planted beside", seen(no_end_beside)),
    _row("token until 2099 planted", each(no_end)),
]
