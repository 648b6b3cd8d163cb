"""The cost of metrics: server CPU of AddItem without any, with those that are counted always, and with all of them.

`none`: the instruments do nothing. `not served`: they count, but no port serves them, so calls are not measured.
`served`: Prometheus scrapes the port every second, fifteen times as often as usual. The rounds are paired: each
contender has one in turn. The reconciler is paused.
"""

import functools
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Testbed, interleave, measure

SHOWS: Final = re.compile(r"cart-grpc shows metrics on (\S+:\d+)")
SCRAPE_SECONDS: Final = 1.0
SERVERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "none": {"module": ("benchmarks.unmeasured_server",)},
    "not served": {},
    "served": {"CART_METRICS_LISTEN": "127.0.0.1:0"},
}


def metrics(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem with and without metrics."""
    filled = {"carts": CARTS, "items": SKUS}
    products = {name: testbed.serve(testbed.database(database, **filled), **how) for name, how in SERVERS.items()}
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders: dict[str, Callable[[], Json]] = {
        name: functools.partial(ask, product.program, "add") for name, product in products.items()
    }
    with _scraping(products["served"].program.says(SHOWS)):
        # Many rounds: a few per cent are to be seen.
        rounds = dict(interleave(contenders, 4 * plan.rounds))
    for product in products.values():
        product.program.stop()
    return rounds


@contextmanager
def _scraping(address: str) -> Iterator[None]:
    """Scrape a metrics port until the block ends, as Prometheus does."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(SCRAPE_SECONDS):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
                response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
