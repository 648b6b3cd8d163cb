"""The CPU of a reserved item by part, for a picture of the progress: one bar for each state of the code.

Each part is the difference between two servers, of which one does this part and the other does not: see `part_server`.
So it includes what the part costs elsewhere, such as threads that wake each other and wait for the GIL. The unit is the
CPU of a no-op in the same round.
"""

import functools
import json
import time
from collections.abc import Callable
from statistics import median

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import ROOT, Json, Product, Testbed, interleave, measure
from benchmarks.reserved import load_items, reserve

STATES = ROOT / "docs" / "performance" / "parts.json"
# The parts, in the order of the stages that add them.
PARTS = {
    "noop": "gRPC",
    "pipeline": "pipeline",
    "request": "request",
    "decide": "decide and reply",
    "add": "load, write, commit",
    "claim": "claim",
    "record": "record",
    "reserved": "call",
}


def parts(testbed: Testbed, database: str, plan: Plan) -> Json | None:
    """Measure the stages of a reserved item. None unless the state has a name (`--state`)."""
    if not plan.state:
        return None
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders: dict[str, Callable[[], Json]] = {"noop": functools.partial(ask, testbed.noop, "noop")}
    products = {name: _serve(testbed, database, name) for name in ("pipeline", "request", "decide", "add")}
    for name, product in products.items():
        contenders[name] = functools.partial(ask, product.program, "add")
    contenders["claim"] = lambda: _claim(testbed, database, plan)
    for name in ("record", "reserved"):
        products[name] = _serve(testbed, database, name)
        products[name].resume()
        contenders[name] = functools.partial(reserve, testbed, products[name], seconds=2 * plan.seconds)
        contenders[name]()
    found = interleave(contenders, plan.rounds)
    for product in products.values():
        product.program.stop()
    return found


def _serve(testbed: Testbed, database: str, stage: str) -> Product:
    module = ("cart_grpc",) if stage in {"add", "reserved"} else ("benchmarks.part_server", stage)
    return testbed.serve(testbed.database(database, carts=CARTS, items=SKUS), module=module)


def _claim(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem and the claims, with a new server each time: unrecorded claims would become due again."""
    product = _serve(testbed, database, "claim")
    product.resume()
    load_items(product, seconds=0.3)
    _wait_until_claimed(product)
    before = product.program.cpu_seconds()
    found = load_items(product, seconds=plan.seconds)
    _wait_until_claimed(product)
    cpu = product.program.cpu_seconds() - before
    product.program.stop()
    return {"per_s": found["ok_per_s"], "cpu_us": cpu / found["answered"] * 1e6}


def _wait_until_claimed(product: Product) -> None:
    while product.stats().due_count:
        time.sleep(0.05)


def split(rounds: Json) -> dict[str, float]:
    """Return the CPU of each part in no-ops: the difference to the stage before, and 0 if noise makes it negative."""
    found, before = {}, 0.0
    for stage, part in PARTS.items():
        pairs = zip(rounds[stage], rounds["noop"], strict=True)
        total = median(turn["cpu_us"] / noop["cpu_us"] for turn, noop in pairs)
        found[part] = round(max(0.0, total - before), 3)
        before = max(total, before)
    return found


def keep(results: Json, state: str) -> None:
    """Add the bars of `state` to the file of all states, or replace those of the measured databases."""
    bars = {database: split(rounds) for database, rounds in results["parts"].items()}
    states = read_states()
    states[state] = {**states.get(state, {}), "commit": results["surroundings"]["commit"], **bars}
    STATES.write_text(json.dumps(states, indent=1, ensure_ascii=False) + "\n")


def read_states() -> dict[str, Json]:
    """Return the bars of all states, the oldest first."""
    states: dict[str, Json] = json.loads(STATES.read_text()) if STATES.exists() else {}
    return states
