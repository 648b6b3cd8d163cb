"""`make bench`: measure, keep what was seen under build/bench, write docs/performance.*. See `--help`."""

import argparse
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.plan import Plan
from benchmarks.programs import DATABASES, ROOT, Json, World, load, world
from benchmarks.sections import SECTIONS

SEEN = ROOT / "build" / "bench" / "seen.json"
log = logging.getLogger(__name__)
VERSIONS = ("grpcio", "protobuf", "uvloop", "SQLAlchemy", "aiosqlite", "asyncpg")


def surroundings() -> Json:
    """The machine and the commit, as far as a reader of the figures needs them."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: version(name) for name in VERSIONS},
    }


def check_counting(opened: World) -> None:
    """The load generator's word is all there is: a refusal that it took for success would make every figure a lie."""
    moody = opened.start("benchmarks.servers", "moody")
    seen = load(moody.address, calls="noop", in_flight=16, warmup=0, duration=0.5)
    unoffered = load(moody.address, calls="get", in_flight=16, warmup=0, duration=0.1)
    moody.stop()
    refused = sum(count for code, count in seen["grpc_status"].items() if code != "0")
    if unoffered["ok"] or seen["not_ok"] != refused or abs(refused / seen["due"] - 0.3) > 0.01:
        raise RuntimeError(f"the load generator cannot count: {seen}, {unoffered}")


def run(names: list[str], databases: list[str], plan: Plan, seen: Json) -> int:
    """Measure, and add it to `seen`; one that fails does not keep the others from it. Returns how many failed."""
    failed = 0
    seen["surroundings"] = surroundings()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, world(Path(folder)) as opened:
        check_counting(opened)
        for name in names:
            for database in databases:
                started = time.monotonic()
                try:
                    found = SECTIONS[name](opened, database, plan)
                except Exception:
                    log.exception("%s on %s", name, database)
                    failed += 1
                    continue
                if found is not None:
                    seen.setdefault(name, {})[database] = found
                print(f"{name} on {database}: {time.monotonic() - started:.0f} s", flush=True)
    return failed


def main() -> int:
    """Returns the exit status: 1 where something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Measure, and write docs/performance.*"
    )
    parser.add_argument("sections", nargs="*", help=f"all, if none are named: {', '.join(SECTIONS)}")
    parser.add_argument("--database", choices=DATABASES, action="append", help="both, if not said")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of a round")
    parser.add_argument("--rows", type=int, default=Plan.rows, help="where it is about many carts or reservations")
    parser.add_argument("--keep", action="store_true", help="what was seen before and is not measured now")
    parser.add_argument("--only-see", type=Path, metavar="FILE", help="write what was seen there, and no docs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    file = options.only_see or SEEN
    seen: Json = json.loads(file.read_text()) if options.keep and file.exists() else {}
    plan = Plan(options.rounds, options.seconds, options.rows)
    failed = run(options.sections or list(SECTIONS), options.database or list(DATABASES), plan, seen)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(seen, indent=1))
    if not options.only_see:
        report.write(seen)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
