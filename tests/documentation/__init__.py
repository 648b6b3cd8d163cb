"""Tests of the documents: their links, their form, the reference, and the site that is built from them."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
_OTHERS = {".venv", "build", "dist", "node_modules"}
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "sdk").rglob("*.md"))
    if not _OTHERS & set(path.relative_to(ROOT).parts)
)
