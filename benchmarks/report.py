from benchmarks.programs import Json


def write(seen: Json) -> None: ...
