"""The first sections of docs/performance.md: the reserved item, and its CPU by part."""

import textwrap

from benchmarks.parts import PARTS
from benchmarks.pictures import TITLES
from benchmarks.programs import DATABASES, Json
from benchmarks.tables import Found, databases_of, middle, rows_of

ABOUT_PARTS = """\
![CPU of a reserved item by part](performance/parts.svg)

In no-ops, one row for each state of the code. Each part is the difference between two servers, of which one does the
part and the other does not: *gRPC* is the no-op, *pipeline* answers at once, *request* reads and checks, *decide and
reply* does it on an empty database in memory, *load, write, commit* is AddItem with the reconciler paused, *claim*
claims and records nothing, *record* answers the calls in place, and *call* is a reserved item."""

# Of SQLite and of PostgreSQL.
AIMS = {
    "reserved item CPU / no-op CPU": ("≤ 2.2", "≤ 2.2"),
    "reserved items / no-ops": ("≥ 0.25", "≥ 0.25"),
    "p50": ("≤ 6 ms", "≤ 15 ms"),
    "wal": ("", "≤ 3,000"),
    "idle": ("≤ 0.6 ms", "≤ 1.0 ms"),
}


def report_reserved(results: Json, found: Found) -> str:
    databases = databases_of(results["reserved"])
    head = ["", *(cell for d in databases for cell in (f"{TITLES[d]}, aim", TITLES[d]))]
    rows: list[list[object]] = []

    def add(name: str, aims: str, cells: list[object]) -> None:
        of_databases = AIMS.get(aims, ("", ""))
        pairs = zip([of_databases[DATABASES.index(d)] for d in databases], cells, strict=True)
        rows.append([name, *(cell for pair in pairs for cell in pair)])

    many = {database: results["reserved"][database]["many"] for database in databases}
    alone = {database: results["reserved"][database]["alone"] for database in databases}
    for name in ("reserved item CPU / no-op CPU", "reserved items / no-ops"):
        add(f"64 in flight: {name}", name, [found[database][name] for database in databases])
    until = [alone[database]["until_reserved"] for database in databases]
    beyond = "one at a time: AddItem until RESERVED, beyond the API's own call"
    add(f"{beyond}, p50", "p50", [f"{middle(turns, 'beyond_p50_us') / 1e3:.1f} ms" for turns in until])
    add(f"{beyond}, p99", "", [f"{middle(turns, 'beyond_p99_us') / 1e3:.1f} ms" for turns in until])
    if set(databases) <= set(results.get("table", {})):
        idle = [results["table"][database]["idle"] for database in databases]
        add("one at a time: AddItem p50 − no-op p50, reconciler paused", "idle",
            [_beyond(turns["add_alone"], turns["noop_alone"]) for turns in idle])  # fmt: skip
    add("one at a time: AddItem p50 − no-op p50, reconciler at work", "",
        [_beyond(alone[database]["add"], alone[database]["noop"]) for database in databases])  # fmt: skip
    add(
        "WAL bytes per reserved item, without images of whole pages",
        "wal",
        [_of_postgresql(many[d], d, "wal_bytes") for d in databases],
    )
    add(
        "WAL bytes per reserved item, images of whole pages",
        "",
        [_of_postgresql(many[d], d, "wal_image_bytes") for d in databases],
    )
    return f"### A reserved item\n\n{rows_of(head, rows)}\n\n{_absolutes(many, databases)}"


def report_parts(states: Json) -> str:
    rows: list[list[object]] = []
    for database in DATABASES:
        for state, bars in states.items():
            if bar := bars.get(database):
                cells = [f"{bar[part]:.2f}" for part in PARTS.values()]
                rows.append([f"{TITLES[database]}: {state} (`{bars['commit']}`)", *cells, f"{sum(bar.values()):.2f}"])
    return f"### CPU by part\n\n{ABOUT_PARTS}\n\n{rows_of(('', *PARTS.values(), 'sum'), rows)}"


def describe_speed(results: Json, found: Found) -> str | None:
    """Return the README's sentences about speed. None if not all of their figures were measured on both databases."""
    if len(databases_of(results.get("reserved", {}))) < len(DATABASES):
        return None

    turns = [results["reserved"][database]["many"]["reserved"] for database in DATABASES]
    items = [f"{round(middle(each, 'per_s'), -2):,.0f}" for each in turns]
    cpu = [f"{found[database]['reserved item CPU / no-op CPU'].median:.1f}" for database in DATABASES]
    text = f"""
        One process reserves {items[0]} items a second on SQLite and {items[1]} on PostgreSQL, on two cores that it
        shares with the database, the Reservation API and the load generator: `AddItem`, its call to the Reservation API
        and the record of the answer, all of it durable. That costs {cpu[0]} and {cpu[1]} times the server CPU of an
        empty RPC. [docs/performance.md](docs/performance.md) has the ratios, the references, and the aims that were
        missed."""
    return "\n" + textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _absolutes(many: Json, databases: list[str]) -> str:
    rows = []
    for database in databases:
        turns = many[database]["reserved"]
        empty = many[database]["noop"]
        rows.append(
            [
                TITLES[database],
                f"{middle(turns, 'per_s'):.0f}",
                f"{middle(empty, 'per_s'):.0f}",
                f"{middle(turns, 'cpu_us'):.0f}",
                f"{middle(empty, 'cpu_us'):.0f}",
                f"{middle(turns, 'api_cpu_us'):.0f}",
                _of_postgresql(many[database], database, "postgres_cpu_us"),
                f"{middle(turns, 'decided'):.2f}",
                f"{middle(turns, 'p50_us') / 1e3:.0f}",
                f"{middle(turns, 'p99_us') / 1e3:.0f}",
            ]
        )
    head = (
        "64 in flight",
        "reserved items/s",
        "no-ops/s",
        "server CPU µs an item",
        "server CPU µs a no-op",
        "simulator CPU µs an item",
        "PostgreSQL CPU µs an item",
        "decisions an AddItem",
        "AddItem p50 ms",
        "AddItem p99 ms",
    )
    return rows_of(head, rows)


def _beyond(turns: list[Json], noop: list[Json]) -> str:
    return f"{(middle(turns, 'p50_us') - middle(noop, 'p50_us')) / 1e3:.2f} ms"


def _of_postgresql(turns: Json, database: str, figure: str) -> str:
    return f"{middle(turns['reserved'], figure):,.0f}" if database == "postgresql" else ""
