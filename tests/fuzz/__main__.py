"""`python -m tests.fuzz [TARGET ...] --runs N`: run each target N times in a process of its own, and print a table.

With atheris, inputs that reach new code are kept in build/fuzz/TARGET and tried first by the next run. Without it, the
inputs are random. An input that finds a fault is written to build/fuzz/TARGET-fault, and the run ends.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from typing import Final

TARGETS: Final = (
    "request", "request-bytes", "page-token", "page-token-text", "grpc-answer", "grpc-answer-bytes", "http-answer",
    "http-answer-bytes", "basic-answer", "batch-answer", "token", "token-text", "key-set", "key-set-bytes",
    "certificate", "certificate-bytes", "wire-sqlite", "wire-postgresql", "wire-guarded",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Run the fuzz targets.")
    parser.add_argument("target", nargs="*", default=TARGETS, help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs of each target (default: 10000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random choices (default: 1)")
    options = parser.parse_args()
    faults = [name for name in options.target if run(name, options.runs, options.seed)]
    return 1 if faults else 0


def run(name: str, runs: int, seed: int) -> bool:
    """Run one target in a process of its own and print its cost. Return whether it found a fault."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.one", name, str(runs), str(seed)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    output = finished.stdout.decode(errors="replace")
    # libFuzzer's last line has the edges and the features of the code that the inputs reached.
    reached = re.findall(r"cov: (\d+) ft: (\d+)", output)
    told = [f"{edges} edges, {features} features" for edges, features in reached[-1:]]
    told += re.findall(r"^told: (.*)$", output, re.MULTILINE)
    verdict = "FAULT" if finished.returncode else "ok"
    print(f"{name:18} {runs:>8} {cpu:>6.0f} s CPU {seconds:>6.0f} s  {verdict}  {'; '.join(told)}", flush=True)
    if finished.returncode:
        print(re.sub("INFO: Instrumenting .*\n", "", output)[-6000:], flush=True)
    return finished.returncode != 0


if __name__ == "__main__":
    raise SystemExit(main())
