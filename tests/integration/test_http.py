"""The daemon's port for probes, asked as Kubernetes does."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration.processes import Daemon, Scene, eventually, scene

ACCOUNT = "le81823118"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, vault_tls=False) as made:  # with TLS each start makes a new CA
        made.settings["APPJWT_HTTP_LISTEN"] = "127.0.0.1:0"
        yield made


def probe(daemon: Daemon, path: str, method: str = "GET") -> int:
    return requests.request(method, f"http://{daemon.wait_for('worker.started')['http']}{path}", timeout=5).status_code


def test_it_is_alive_at_once_and_ready_from_the_first_sync_on(world: Scene) -> None:
    world.openbao.stop()
    root = {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": world.openbao.root_token}
    daemon = world.daemon(root)  # a dev server forgets its logins when it stops, but not its root token
    daemon.wait_for("vault.unavailable")
    assert (probe(daemon, "/livez"), probe(daemon, "/readyz")) == (200, 503)
    world.openbao.start()
    daemon.wait_for("worker.ready")
    assert eventually(lambda: probe(daemon, "/readyz") == 200)
    world.openbao.stop()
    assert (probe(daemon, "/livez"), probe(daemon, "/readyz")) == (200, 200), "once true it stays true"
    daemon.stop()


def test_nothing_can_be_changed_and_nothing_else_is_there(world: Scene) -> None:
    daemon = world.daemon()
    assert probe(daemon, "/readyz", "POST") == 405
    assert probe(daemon, "/livez", "HEAD") == 200
    for path in ("/", "/livez/", "/../etc/passwd", "/%00"):
        assert probe(daemon, path) == 404
    assert probe(daemon, "/readyz?x=1") in (200, 503)
    daemon.stop()


def test_a_port_that_is_taken_is_a_wrong_setting_and_no_mode_but_the_daemon_wants_it(world: Scene) -> None:
    world.add_account(ACCOUNT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        changes = {"APPJWT_HTTP_LISTEN": listen}
        done = world.call(changes=changes)
        assert done.status == 2
        assert f"http.listen (APPJWT_HTTP_LISTEN): {listen} cannot be had: address already in use" in done.err
        assert world.call("--refresh", ACCOUNT, changes=changes).status == 0
