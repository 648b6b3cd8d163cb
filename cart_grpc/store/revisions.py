"""The revisions of the schema that this release knows. Their names sort in their order: four digits."""

from pathlib import Path
from typing import Final

VERSIONS: Final = Path(__file__).parent / "migrations" / "versions"
# The revision of the first release. It did not write its revision down.
FIRST: Final = "0001"


def known_revisions(versions: Path = VERSIONS) -> list[str]:
    """Return the revisions in a folder, oldest first. The name of a script begins with its revision."""
    return sorted(path.name.partition("_")[0] for path in versions.glob("[0-9]*.py"))


# The revision that this release needs.
LATEST: Final = known_revisions()[-1]
