"""`make evidence`: for each page in docs/evidence/ the number of commits that touched its code since.

Ends with 1 if there are any, or if a page's commit is not in this history: a release refuses that.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from tests.origin import EVIDENCE

CODE: Final[Mapping[str, tuple[str, ...]]] = {
    "alerts": ("worker", "helm/appjwt-worker/alerts", "tests/alerts"),
    "chaos": ("worker", "tests/chaos"),
    "fuzz": ("worker", "tests/fuzz"),
    "mutation": ("worker/core", "tests/unit/core"),
    "performance": ("worker", "benchmarks"),
    "simulation": ("worker", "tests/simulation"),
    "soak": ("worker", "tests/chaos"),
}
"""By page, what it was measured on."""
_COMMIT: Final = re.compile(r"commit ([0-9a-f]{7,40})\b")


def main() -> int:
    since = {page: _commits_since(page) for page in CODE}
    for page, commits in since.items():
        age = "its commit is not in this history" if commits is None else f"{commits} commits since"
        sys.stdout.write(f"{page:12} {age}\n")
    return int(any(commits != 0 for commits in since.values()))


def _commits_since(page: str) -> int | None:
    """Return the number of commits that touched a page's code after the page; None = its commit is unknown."""
    found = _COMMIT.search((EVIDENCE / f"{page}.md").read_text())
    if found is None:
        return None
    command = ["git", "rev-list", "--count", f"{found[1]}..HEAD", "--", *CODE[page]]
    counted = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(counted.stdout) if counted.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
