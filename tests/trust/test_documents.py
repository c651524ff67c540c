"""Every target of the documents exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "helm").rglob("*.md"))
    if ".venv" not in path.parts
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_map_of_the_code_names_what_there_is() -> None:
    """Every module of the worker is in ARCHITECTURE, and every target that a document names can be made."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [each.stem for each in (ROOT / "worker").glob("*.py") if each.stem not in text and each.stem[0] != "_"]
    assert missing == []
    targets = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"make (\w+)", targets))
    for document in DOCUMENTS:
        named = set(re.findall(r"`(?:\S+ )?make ([a-z]+)[ `]", document.read_text()))
        assert named <= known, document
