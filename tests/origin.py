"""The origin of figures, and where they are kept."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[1]
EVIDENCE: Final = _ROOT / "docs" / "evidence"


def origin() -> str:
    """Return the commit, and today's date."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    return f"commit {asked.stdout.strip() or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}"
