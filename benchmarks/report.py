"""Writes docs/performance.json, the pictures, and the text between the marks in docs/performance.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import ratios
from benchmarks.parts import read_states
from benchmarks.pictures import LABELS, TITLES, draw, draw_parts
from benchmarks.programs import DATABASES, ROOT, Json
from benchmarks.ratios import KEPT
from benchmarks.report_reserved import describe_speed, report_parts, report_reserved
from benchmarks.shards import pairs
from benchmarks.tables import ABSOLUTE, Found, absolute, databases_of, middle, rows_of

PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
MARKS = ("<!-- written by `make bench`: do not edit -->", "<!-- until here -->")
README_MARKS = ("<!-- speed: written by `make bench` -->", "<!-- until here -->")


def write(results: Json) -> None:
    """Write the report of `results`."""
    found = ratios.ratios(results)
    KEPT.parent.mkdir(exist_ok=True)
    kept = {"surroundings": results["surroundings"], "ratios": found, "results": _condensed(results)}
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    draw(results, found, PAGE.parent / "performance")
    written = [_surroundings(results["surroundings"])]
    for name, write_part in _PARTS.items():
        if name in results:
            written.append(write_part(results, found))
        if name == "reserved" and (states := read_states()):
            draw_parts(states, PAGE.parent / "performance")
            written.append(report_parts(states))
    _replace(PAGE, MARKS, "\n{}\n".format("\n\n".join(written)))
    if sentences := describe_speed(results, found):
        _replace(README, README_MARKS, sentences)


def _replace(file: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between the marks. Raises ValueError if the file does not have them."""
    start, end = map(re.escape, marks)
    page, count = re.subn(f"{start}.*{end}", lambda _: f"{marks[0]}{text}{marks[1]}", file.read_text(), flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{file} has no {marks[0]}")
    file.write_text(page)


def _condensed(results: Json) -> Json:
    """Return the medians of all figures, for readers who draw their own pictures."""

    def condense(value: object) -> object:
        if isinstance(value, list) and value and isinstance(value[0], dict) and "per_s" in value[0]:
            return {name: round(median(turn.get(name, 0) for turn in value), 3) for name in value[0]}
        if isinstance(value, dict):
            return {name: condense(inner) for name, inner in value.items() if name != "timeline"}
        return round(value, 3) if isinstance(value, float) else value

    return {name: condense(value) for name, value in results.items() if name != "surroundings"}


def _surroundings(around: Json) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    return (
        f"Measured on {around['date']} at commit `{around['commit']}`: {around['cores']} cores for servers, database"
        f" and load generator, {around['memory_gib']} GiB, {around['system']}, {around['python']}, {versions}."
        " A figure is the median of the rounds; in brackets are the lowest and the highest."
    )


AIMS = (
    ("AddItem / no-op", ("≥ 0.85", "≥ 0.90")),
    ("AddItem p99 / no-op p99", ("≤ 2", "≤ 2")),
    ("GetCart / no-op", ("≥ 0.80", "≥ 0.80")),
    ("GetCart of changing carts / no-op", ("", "")),
    ("AddItem CPU / no-op CPU", ("", "")),
)


def _table(results: Json, found: Found) -> str:
    databases = databases_of(results["table"])
    head = ["64 in flight", *(cell for d in databases for cell in (f"{TITLES[d]}, aim", TITLES[d]))]
    rows: list[list[object]] = []
    for name, aims in AIMS:
        row: list[object] = [name]
        for database in databases:
            row += [aims[DATABASES.index(database)], found[database][f"{name}, idle"]]
        rows.append(row)
    alone: list[object] = ["one at a time: AddItem p50 − no-op p50"]
    calls: list[list[object]] = []
    for database in databases:
        idle, durable = results["table"][database]["idle"], results["table"][database]["durable_us"] / 1e3
        more = middle(idle["add_alone"], "p50_us") - middle(idle["noop_alone"], "p50_us")
        alone += [f"≤ {durable + 0.5:.2f} ms ({durable:.2f} + 0.5)", f"{more / 1e3:.2f} ms"]
        calls += [absolute(f"{TITLES[database]}: {title}", idle[name]) for name, title in NAMES.items()]
    tables = f"{rows_of(head, [*rows, alone])}\n\n{rows_of(ABSOLUTE, calls)}"
    return f"### Calls alone, with the reconciler paused\n\n{tables}"


NAMES = {**LABELS, "get changing": "GetCart, 20 items, of carts that AddItem changes"}


def _concurrency(results: Json, _: Found) -> str:
    rows = []
    for database in databases_of(results["concurrency"]):
        for level, contenders in results["concurrency"][database].items():
            cells = [
                f"{middle(turns, 'per_s'):.0f}/s, p99 {middle(turns, 'p99_us') / 1e3:.1f} ms"
                for turns in contenders.values()
            ]
            rows.append([f"{TITLES[database]}, {level} in flight", *cells])
    picture = "![Throughput and p99 against calls in flight](performance/concurrency.svg)"
    return (
        f"### More calls in flight, with the reconciler paused\n\n{picture}\n\n{rows_of(('', *LABELS.values()), rows)}"
    )


def _flatness(results: Json, found: Found) -> str:
    databases = databases_of(results["flatness"])
    size = results["flatness"][databases[0]]["rows"]
    names = [name for name in found[databases[0]] if name.endswith(("/ few", "/ 1 item")) or "hot" in name]
    rows = [[name, *(found[database].get(name, "") for database in databases)] for name in names]
    table = rows_of(("64 in flight", *(TITLES[database] for database in databases)), rows)
    picture = "![Throughput with much in the database against little](performance/flatness.svg)"
    size = f"`many` is {size:,}; `few` is 1,000 carts with as many items each, and no other rows."
    return f"### More rows in the database, with the reconciler paused\n\n{size}\n\n{picture}\n\n{table}"


def _settling(results: Json, _: Found) -> str:
    rows = []
    for database in databases_of(results["settling"]):
        found = results["settling"][database]
        figures = [f"{found['per_s']:.0f}", f"{found['cpu_us']:.0f}", f"{found['peak_mib']:.0f}"]
        rows.append([TITLES[database], f"{found['backlog']:,}", f"{found['seconds']:.0f}", *figures])
    head = ("", "backlog", "seconds", "settled/s", "server CPU µs each", "peak MiB")
    return f"### A backlog\n\nThe simulator answers at once, on the same cores.\n\n{rows_of(head, rows)}"


def _slow_calls(results: Json, _: Found) -> str:
    rows = []
    for database in databases_of(results["slow calls"]):
        found = results["slow calls"][database]
        before, during = (ratios.between(found[when], "add", "noop") for when in ("before", "during"))
        rows.append([TITLES[database], f"{found['hanging']:,}", f"{found['kib_each']:.1f}", before, during])
    head = ("", "calls hanging", "KiB each", "AddItem / no-op before", "AddItem / no-op during")
    return f"### While the Reservation API hangs\n\n{rows_of(head, rows)}"


def _overload(results: Json, found: Found) -> str:
    head = ("offered", "reserved in time / capacity", "answered in time / capacity", "p99 ms", "refused p99 ms",
            "refused, by code", "held back in the client", "never answered", "peak MiB", "health p99 ms",
            "load generator, cores")  # fmt: skip
    rows, after = [], []
    for database in databases_of(results["overload"]):
        measured = results["overload"][database]
        for times, load in measured["loads"].items():
            goodput = found[database][f"goodput at {times} × / capacity"].median
            rows.append(_load_row(f"{TITLES[database]}, {times} ×", goodput, load, measured["capacity"]))
        seconds = measured["recovery_s"]
        itself = "not recovered within the run" if seconds is None else f"recovered after {seconds:.1f} s"
        memory = f"{measured['memory_before_mib']:.0f} MiB before, {measured['memory_after_mib']:.0f} MiB after"
        after.append(f"{TITLES[database]}: capacity {measured['capacity']:.0f} reserved items/s; {itself}; {memory}.")
    picture = "![Goodput and latency against offered load](performance/overload.svg)"
    return f"### Overload\n\n{picture}\n\n{rows_of(head, rows)}\n\n" + "\n".join(after)


def _load_row(name: str, goodput: float, load: Json, capacity: float) -> list[object]:
    taken, refused = load["ok_us"] or {}, load["not_ok_us"] or {}
    counts = {CODES.get(code, code): count for code, count in load["grpc_status"].items() if code != "0"}
    counts |= {RESETS.get(code, f"RST_STREAM {code}"): count for code, count in load["resets"].items()}
    return [
        name,
        f"{goodput:.2f}",
        f"{load['ok_per_s'] / capacity:.2f}",
        f"{taken.get('p99', 0) / 1e3:.0f}",
        f"{refused['p99'] / 1e3:.1f}" if refused else "",
        ", ".join(f"{code} {count}" for code, count in counts.items()) or "none",
        load["unsent"],
        load["unfinished"],
        f"{load['peak_mib']:.0f}",
        f"{load['health']['p99_ms']:.0f} ({load['health']['failed']} failed)",
        f"{load['cpu_share']:.2f}",
    ]


CODES = {"1": "CANCELLED", "2": "UNKNOWN", "4": "DEADLINE_EXCEEDED", "8": "RESOURCE_EXHAUSTED", "13": "INTERNAL",
         "14": "UNAVAILABLE"}  # fmt: skip
RESETS = {"7": "REFUSED_STREAM", "8": "RST_STREAM CANCEL"}


def _fairness(results: Json, found: Found) -> str:
    def p99(turns: list[Json]) -> str:
        return f"{median((turn['ok_us'] or {}).get('p99', float('nan')) for turn in turns) / 1e3:.1f}"

    def share(turns: list[Json], figure: str) -> str:
        return f"{median(turn[figure] / max(turn['due'], 1) for turn in turns):.1%}"

    rows = []
    for database in databases_of(results["fairness"]):
        measured = results["fairness"][database]
        rows.append([f"{TITLES[database]}, alone", p99(measured["alone"]), "", "", ""])
        for name, title in (("beside a flood", "flood on its own connection"), ("in a flood", "flood on theirs")):
            turns, ratio = measured[name], found[database][f"p99 {name} / alone"]
            rows.append(
                [f"{TITLES[database]}, {title}", p99(turns), str(ratio), share(turns, "not_ok"), share(turns, "unsent")]
            )
    head = ("other users' calls", "p99 ms", "p99 / p99 alone", "refused", "held back in the client")
    about = "All other users together use 0.3 of the capacity. One user sends twice the capacity."
    return f"### One user floods the server\n\n{about}\n\n{rows_of(head, rows)}"


def _workers(results: Json, _: Found) -> str:
    found = results["workers"]["postgresql"]
    rows = [absolute(name if name == "noop" else f"{name} workers", turns) for name, turns in found.items()]
    return f"### Several processes on PostgreSQL, with the reconciler paused\n\n{rows_of(ABSOLUTE, rows)}"


def _watch(results: Json, _: Found) -> str:
    rows, late = [], []
    for database in databases_of(results["watch"]):
        found = results["watch"][database]
        idle, busy = (f"{found[f'{what}_cpu_share']:.1%}" for what in ("idle", "changing"))
        alone, each = f"{found['changes_alone_cpu_share']:.1%}", found["message_cpu_us"] / found["noop_cpu_us"]
        figures = [f"{found['kib_each']:.0f}", idle, alone, busy, f"{each:.2f}", f"{found['messages_per_s']:.0f}"]
        rows.append([TITLES[database], *figures])
        for name, times in found.items():
            if name.startswith("latency, "):
                cells = [f"{times[part] / 1e3:.1f}" for part in ("reply_p50_us", "p50_us", "p99_us")]
                late.append([f"{TITLES[database]}, {name.removeprefix('latency, ')}", *cells])
    head = ("10,000 watchers", "KiB each", "CPU idle", "CPU of 1,000 AddItems/s alone", "CPU with watchers",
            "a message / no-op", "messages/s")  # fmt: skip
    columns = ("from the AddItem, ms", "its reply, p50", "the watcher has it, p50", "p99")
    about = "Each watches a cart of 5 items. CPU is the server's share of a core. The reconciler is paused."
    return f"### Watchers\n\n{about}\n\n{rows_of(head, rows)}\n\n{rows_of(columns, late)}"


def _access(results: Json, found: Found) -> str:
    rows: list[list[object]] = []
    for database in databases_of(results["access"]):
        rounds = results["access"][database]
        for name, turns in rounds.items():
            ratio = found[database].get(f"AddItem CPU, {name} / no identity", "")
            rows.append([f"{TITLES[database]}: {name}", ratio, f"{middle(turns, 'cpu_us'):.0f}"])
    head = ("AddItem", "CPU / CPU without identity", "server CPU µs a call")
    about = "Each user has a cart and a token, which has been verified before. The reconciler is paused."
    return f"### Identities\n\n{about}\n\n{rows_of(head, rows)}"


def _metrics(results: Json, found: Found) -> str:
    rows: list[list[object]] = []
    for database in databases_of(results["metrics"]):
        for name, turns in results["metrics"][database].items():
            ratio = found[database].get(f"AddItem CPU, {name} / none", "")
            rows.append([f"{TITLES[database]}: {name}", ratio, f"{middle(turns, 'cpu_us'):.0f}"])
    head = ("AddItem, metrics", "CPU / CPU without metrics", "server CPU µs a call")
    about = (
        "`none`: the instruments do nothing. `not served`: they count what the database and the reconciler do. "
        "`served`: calls are measured, too, and the port is scraped every second. The reconciler is paused."
    )
    return f"### Metrics\n\n{about}\n\n{rows_of(head, rows)}"


def _traces(results: Json, found: Found) -> str:
    rows: list[list[object]] = []
    for database in databases_of(results["traces"]):
        for name, turns in results["traces"][database].items():
            ratio = found[database].get(f"AddItem CPU, {name} / off", "")
            rows.append([f"{TITLES[database]}: {name}", ratio, f"{middle(turns, 'cpu_us'):.0f}"])
    head = ("AddItem, sampled", "CPU / CPU without traces", "server CPU µs a call")
    about = "Exported by OTLP over gRPC. The reconciler is paused, so a call costs less than with its reservation."
    return f"### Traces\n\n{about}\n\n{rows_of(head, rows)}"


def _shards(results: Json, found: Found) -> str:
    rows: list[list[object]] = []
    for database in databases_of(results["shards"]):
        rounds = results["shards"][database]
        for name, one in pairs():
            ratio = [found[database][f"reserved {figure}, {name} / {one}"] for figure in ("items", "item CPU")]
            figures = [f"{middle(rounds[name], figure):.0f}" for figure in ("per_s", "cpu_us", "postgres_cpu_us")]
            rows.append([name, *ratio, *figures])
    head = ("", "rate / one shard", "CPU / one shard", "items/s", "server CPU µs", "PostgreSQL CPU µs")
    about = "Reserved items on one PostgreSQL. A batch belongs to one shard, so batches are smaller with more shards."
    return f"### Shards\n\n{about}\n\n{rows_of(head, rows)}"


def _comparisons(results: Json, found: Found) -> str:
    rows = []
    for database in databases_of(results["comparisons"]):
        rounds = results["comparisons"][database]
        for name in rounds:
            if name != "noop":
                _, *cells = absolute(name, rounds[name])
                of_noop = [found[database][f"{name}{figure}"] for figure in (" CPU / no-op CPU", " / no-op")]
                rows.append([f"{TITLES[database]}: {PEERS[name]}", *of_noop, *cells[:-1]])
    head = ("", "CPU / no-op CPU", "rate / no-ops", "calls or items/s", *ABSOLUTE[2:4], "server CPU µs each")
    return f"### Other designs\n\n{rows_of(head, rows)}"


def _interpreters(results: Json, found: Found) -> str:
    rows: list[list[object]] = []
    for database in databases_of(results["interpreters"]):
        measured = results["interpreters"][database]
        for name, build in measured["builds"].items():
            noop, item = (measured["rounds"][f"{name} {call}"] for call in ("noop", "reserved"))
            figures = [f"{middle(noop, 'cpu_us'):.0f}", f"{middle(item, 'cpu_us'):.0f}", f"{middle(item, 'per_s'):.0f}"]
            rows.append([f"{TITLES[database]}: {build}", *figures])
        of_database = found[database]
        names = ("noop CPU", "reserved CPU", "reserved items")
        ratio = [of_database[f"other Python / this one: {name}"] for name in names]
        rows.append([f"{TITLES[database]}: the second / the first", *ratio])
    head = ("", "server CPU µs a no-op", "server CPU µs a reserved item", "reserved items/s")
    return f"### Python interpreters\n\n{rows_of(head, rows)}"


PEERS = {
    "reserved": "this project, reserved item",
    "queue reserved": "ORM session per request and a job queue (Procrastinate), reserved item",
    "exercise reserved": "FastAPI and a background task, reserved item",
    "orm add": "ORM session per request, AddItem",
    "orm get": "ORM session per request, GetCart",
    "exercise get": "FastAPI and a background task, GET cart",
    "asyncio noop": "the no-op on asyncio's own loop instead of uvloop",
}
_PARTS: dict[str, Callable[[Json, Found], str]] = {
    "reserved": report_reserved,
    "table": _table,
    "concurrency": _concurrency,
    "flatness": _flatness,
    "settling": _settling,
    "slow calls": _slow_calls,
    "overload": _overload,
    "fairness": _fairness,
    "workers": _workers,
    "watch": _watch,
    "access": _access,
    "metrics": _metrics,
    "traces": _traces,
    "shards": _shards,
    "comparisons": _comparisons,
    "interpreters": _interpreters,
}
