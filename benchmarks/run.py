"""`make bench`: measure, keep the results under build/bench, and write docs/performance.*. See `--help`."""

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

from benchmarks import parts, report
from benchmarks.interpreters import describe
from benchmarks.plan import Plan
from benchmarks.programs import DATABASES, ROOT, Json, Testbed, load, testbed
from benchmarks.sections import SECTIONS

RESULTS = ROOT / "build" / "bench" / "results.json"
log = logging.getLogger(__name__)
VERSIONS = ("grpcio", "protobuf", "uvloop", "SQLAlchemy", "aiosqlite", "asyncpg")


def surroundings() -> Json:
    """Describe the machine and the commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": describe(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def check_counting(opened: Testbed) -> None:
    """Check that the load generator counts refusals. If it took them for successes, every figure would be wrong."""
    moody = opened.start("benchmarks.servers", "moody")
    results = load(moody.address, calls="noop", in_flight=16, warmup=0, duration=0.5)
    unoffered = load(moody.address, calls="get", in_flight=16, warmup=0, duration=0.1)
    moody.stop()
    refused = sum(count for code, count in results["grpc_status"].items() if code != "0")
    if unoffered["ok"] or results["not_ok"] != refused or abs(refused / results["due"] - 0.3) > 0.01:
        raise RuntimeError(f"the load generator cannot count: {results}, {unoffered}")


def run(names: list[str], databases: list[str], plan: Plan, results: Json) -> int:
    """Measure the sections and add them to `results`. Continue after a failure. Return the number of failures."""
    failed = 0
    results["surroundings"] = surroundings()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, testbed(Path(folder)) as opened:
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
                    results.setdefault(name, {})[database] = found
                print(f"{name} on {database}: {time.monotonic() - started:.0f} s", flush=True)
    return failed


def main() -> int:
    """Return the exit status: 1 if a section failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Measure, and write docs/performance.*"
    )
    parser.add_argument("sections", nargs="*", help=f"default: all of {', '.join(SECTIONS)}")
    parser.add_argument("--database", choices=DATABASES, action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of a round")
    parser.add_argument("--rows", type=int, default=Plan.rows, help="rows of a large database")
    parser.add_argument(
        "--state", default="", help="for `parts`: the name of its bar in the picture, such as the change"
    )
    parser.add_argument("--other-python", default="", help="for `interpreters`: has the project installed")
    parser.add_argument("--keep", action="store_true", help="keep earlier results of other sections")
    parser.add_argument("--results-only", type=Path, metavar="FILE", help="write the results to FILE, and no docs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}")
    file = options.results_only or RESULTS
    results: Json = json.loads(file.read_text()) if options.keep and file.exists() else {}
    if options.state:
        # Those of another state, maybe.
        results.pop("parts", None)
    plan = Plan(options.rounds, options.seconds, options.rows, options.state, options.other_python)
    failed = run(options.sections or list(SECTIONS), options.database or list(DATABASES), plan, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1))
    if options.state and "parts" in results:
        parts.keep(results, options.state)
    if not options.results_only:
        report.write(results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
