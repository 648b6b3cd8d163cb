"""Makes the synchronous client and its tests from the asynchronous ones: `_sync` from `_async`, file by file."""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

FOLDERS = (Path("cart_grpc/client"), Path("tests/client"))
REPLACEMENTS = {
    "_async": "_sync",
    "CartClient": "SyncCartClient",
    "aclose": "close",
    "aclosing": "closing",
    "async_io": "sync_io",
    "anext": "next",
}
HEADER = "# Made by `make sync-client` from the file of the same name in _async. Do not edit.\n"


def make(root: Path, folder: Path) -> None:
    """Make the `_sync` folder in `folder`, which is relative to `root`."""
    source, target = root / folder / "_async", root / folder / "_sync"
    shutil.rmtree(target, ignore_errors=True)
    rule = unasync.Rule(fromdir="/_async/", todir="/_sync/", additional_replacements=REPLACEMENTS)
    unasync.unasync_files([str(file) for file in sorted(source.glob("*.py"))], [rule])
    for file in target.glob("*.py"):
        file.write_text(HEADER + file.read_text(encoding="utf-8"), encoding="utf-8")
    # Other names change the order of imports, and where lines break.
    for command in (["check", "--fix-only", "--quiet", "--select", "I"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, target], check=True)


def is_current(root: Path, folder: Path) -> bool:
    """Whether the `_sync` folder in `folder` is what `make` makes."""
    with tempfile.TemporaryDirectory() as place:
        fresh = Path(place)
        shutil.copy(root / "pyproject.toml", fresh)
        shutil.copytree(root / folder / "_async", fresh / folder / "_async")
        make(fresh, folder)
        there, here = (sorted(one.glob("*.py")) for one in (fresh / folder / "_sync", root / folder / "_sync"))
        return [file.name for file in there] == [file.name for file in here] and all(
            filecmp.cmp(one, other, shallow=False) for one, other in zip(there, here, strict=True)
        )


def main() -> int:
    """Make both folders, or check them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the project's folder")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a folder is not current")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    for folder in FOLDERS:
        if not arguments.check:
            make(root, folder)
        elif not is_current(root, folder):
            sys.stderr.write(f"{folder}/_sync is stale: run 'make sync-client'\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
