"""Work in parts, each of which is done although another one fails: a shard may be on a node that is away."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def do_each(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Await one part after the other, and return their results. Raises the first error once all have ended."""
    results: list[T | BaseException] = []
    for part in parts:
        try:
            results.append(await part)
        except Exception as error:  # noqa: BLE001 - it is raised when the others have ended
            results.append(error)
    return all_of(results)


def all_of(results: Sequence[T | BaseException]) -> list[T]:
    """Return the results of parts. Raises the first error among them."""
    done: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
