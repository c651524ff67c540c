"""The table of values in the chart's README, made from the comments in values.yaml. `make chart` writes it."""

import json
import re
import sys
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.chart.schema import CHART

README: Final = CHART / "README.md"
_START: Final = "<!-- values: written by make chart -->\n"
_END: Final = "<!-- end of values -->\n"
_KEY: Final = re.compile(r"( *)([A-Za-z]+):.*")


@dataclass(frozen=True)
class Row:
    name: str
    """With dots: `image.tag`."""
    default: Any
    description: str


def rows() -> list[Row]:
    """Return the values that have a comment `# --`, in the file's order; what is inside such a value belongs to it."""
    text = (CHART / "values.yaml").read_text()
    values, found = yaml.safe_load(text), []
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("# -- "):
            comment = [line.strip().removeprefix("# -- ")]
        elif line.strip().startswith("# ") and comment:
            comment.append(line.strip().removeprefix("# "))
        elif match := _KEY.fullmatch(line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                found.append(Row(".".join(path), _default(values, path), " ".join(comment)))
            comment = []
    return found


def _default(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def readme() -> str:
    """Return the README with the table as the comments have it now."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{row.name}` | `{json.dumps(row.default)}` | {row.description} |" for row in rows()]
    before, _, rest = README.read_text().partition(_START)
    return before + _START + "\n".join(lines) + "\n" + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    README.write_text(readme())
    sys.stdout.write("the README's table of values is in step with values.yaml\n")
