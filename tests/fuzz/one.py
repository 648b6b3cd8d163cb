"""`python -m tests.fuzz.one TARGET RUNS SEED`: run one target in this process. See `__main__`."""

import asyncio
import importlib.util
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

FOLDER: Final = Path("build/fuzz")
MAX_BYTES: Final = 600
# An input that takes longer hangs.
HANGS_AFTER: Final = 20
# The growth of a server's memory after its warm-up, over any number of calls.
MAX_GROWTH: Final = 64 << 20


def main() -> None:
    name, runs, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    FOLDER.mkdir(parents=True, exist_ok=True)
    if name.startswith("wire-"):
        run_wire(name, runs, seed)
    elif importlib.util.find_spec("atheris"):
        run_guided(name, runs, seed)
    else:
        run_random(name, runs, seed)


def run_guided(name: str, runs: int, seed: int) -> None:
    """Let atheris choose the inputs by the code that they reach. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["cart_grpc"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    corpus = FOLDER / name
    corpus.mkdir(exist_ok=True)
    for number, seed_input in enumerate(SEEDS.get(name, ())):
        (corpus / f"seed-{number}").write_bytes(seed_input)
    options = {
        "runs": runs,
        "seed": seed,
        "max_len": MAX_BYTES,
        "timeout": HANGS_AFTER,
        "artifact_prefix": f"{corpus}-fault-",
    }
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), str(corpus)], TARGETS[name])
    atheris.Fuzz()


def run_random(name: str, runs: int, seed: int) -> None:
    from tests.fuzz.targets import TARGETS

    rng, target = random.Random(seed), TARGETS[name]
    for _ in range(runs):
        data = rng.randbytes(rng.randrange(MAX_BYTES))
        try:
            target(data)
        except BaseException:
            (FOLDER / f"{name}-fault").write_bytes(data)
            raise


def run_wire(name: str, runs: int, seed: int) -> None:
    from tests.fuzz.guarded_wire import GuardedSiege
    from tests.fuzz.wire import Siege
    from tests.postgres import running_postgres
    from tests.processes.harness import running_programs

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs = stack.enter_context(running_programs(folder))
        if name == "wire-guarded":
            siege: Siege = GuardedSiege(programs, f"sqlite:///{folder}/cart.db", folder)
        elif name == "wire-sqlite":
            siege = Siege(programs, f"sqlite:///{folder}/cart.db")
        else:
            siege = Siege(programs, stack.enter_context(running_postgres()).create_database("cart"))
        asyncio.run(siege.run(min(5000, runs // 2), runs, seed))
    ended = ", ".join(f"{code} {count}" for code, count in siege.ended.most_common())
    grown = ", ".join(f"{growth / 2**20:.0f}" for growth in siege.growth)
    print(f"told: {ended}; memory grew by {grown} MiB")
    assert siege.growth[-1] < MAX_GROWTH


if __name__ == "__main__":
    main()
