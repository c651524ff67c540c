"""The search for secrets finds what is planted, in each form, and in each channel that tests and processes print to."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.forms import FORMS
from tests.integration.processes import scene
from tests.leaks import leaks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", FORMS)
def test_a_leak_is_found_in_each_form_whole_and_cut(form: str) -> None:
    secret, other = f"{secrets.token_hex(9)}/+&<\"'{secrets.token_hex(9)}", secrets.token_hex(20)
    encoded_secret = FORMS[form](secret)
    assert leaks(f"before {encoded_secret} after", [secret])
    assert leaks(f"before {secret[5:17]} after", [secret])
    assert leaks(f"before {encoded_secret[: len(encoded_secret) * 2 // 3]}", [secret])
    assert not leaks(f"before {FORMS[form](other)} after", [secret])


def test_what_looks_like_a_token_is_found_though_nobody_knows_it() -> None:
    assert leaks("Bearer eyJhbGciOiJSUzI1NiJ9", [])
    assert leaks(f"X-Vault-Token: s.{secrets.token_hex(12)}", [])


PLANTED = """
import sys
from tests.builders import client_secret

def test_to_stdout(): print("with", client_secret())
def test_to_stderr(): print("with", client_secret(), file=sys.stderr)
def test_in_hex(): print(client_secret().encode().hex())
def test_a_token(): print("eyJ" + "hbGciOiJSUzI1NiJ9")
def test_in_a_fixture_as_well(capsys): print("fine")
"""


def test_a_test_that_prints_a_secret_fails(tmp_path: Path) -> None:
    file = tmp_path / "test_planted.py"
    file.write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "5 passed, 4 errors" in done.stdout, done.stdout


def test_a_process_that_prints_a_secret_fails_its_scene_whatever_it_prints_to(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"le-named"), scene(tmp_path / "world", vault_tls=False) as world:  # noqa: PT012
        secret = world.add_account("le1").client_secret
        daemon = world.daemon()
        daemon.wait_for("token.refreshed")
        token = (world.openbao.get_token("le1") or {})["access_token"]
        daemon.stop()
        log = world.folder / "daemon-0.log"
        clean = log.read_text()
        for leak in (secret, secret[:14], token, token[-40:], world.openbao.root_token, secret.encode().hex()):
            log.write_text(f'{clean}{{"event": "x", "field": "{leak}"}}\n')
            with pytest.raises(AssertionError):
                world.check_what_was_printed()
        log.write_text(clean)
        world.check_what_was_printed()
        world.secrets.append("le-named-like-a-secret")
        world.call("--refresh", "le-named-like-a-secret")  # the end of the scene finds it
