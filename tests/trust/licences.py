"""The licence of each thing that the worker brings along: `make licences`."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path("requirements/runtime.txt")
_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; ([^\\]+))?", re.MULTILINE)
ELSEWHERE = "not for this machine"
ALLOWED = re.compile(r"(MIT|MIT-0|Apache-2\.0|BSD(-[23]-Clause)?|MPL-2\.0|PSF-2\.0|ZPL[ -]2\.1|OR|AND|License|\s)+")


def pins(lock: Path = LOCK) -> dict[str, tuple[str, str | None]]:
    """Return by name: the version, and the marker of those that only some machines want."""
    return {name: (number, marker and marker.strip()) for name, number, marker in _PIN.findall(lock.read_text())}


def licences() -> Iterator[tuple[str, str, str]]:
    """Yield name, version, and the licence by the package's metadata."""
    for name, (number, _) in pins().items():
        try:
            package = metadata(name)
        except PackageNotFoundError:
            yield name, number, ELSEWHERE
            continue
        classified = [
            each.rpartition(" :: ")[2] for each in package.get_all("Classifier") or [] if "License ::" in each
        ]
        yield name, number, package["License-Expression"] or package["License"] or " ".join(classified) or "unknown"


if __name__ == "__main__":
    for line in licences():
        sys.stdout.write("{:<20} {:<12} {}\n".format(*line))
