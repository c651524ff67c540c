"""A test skipped for want of a system tool is reported, and with STRICT=1 it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.tool("sh")
def test_wants_a_shell():
    pass

@pytest.mark.tool("no-such-tool")
def test_wants_what_is_not_there():
    pass
"""


@pytest.mark.parametrize(
    ("strict", "status", "outcome"), [("0", 0, "1 passed, 1 skipped"), ("1", 1, "1 passed, 1 error")]
)
def test_a_missing_tool_is_said_at_the_end(strict: str, status: int, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = tool(name)\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--strict-markers"],
        cwd=tmp_path,
        env={**os.environ, "STRICT": strict},
        capture_output=True,
        text=True,
        check=False,
    )
    _, _, end = run.stdout.partition("NOT RUN for want of a system tool")
    assert "\nno-such-tool:\n  test_it.py::test_wants_what_is_not_there\n" in end
    assert "test_wants_a_shell" not in end
    assert outcome in end
    assert run.returncode == status
