"""Another Python interpreter against this one: the no-op and the reserved item, in rounds that take turns."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Testbed, interleave, measure
from benchmarks.reserved import reserve

_ASK = """\
import json, platform, sys, sysconfig
arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps([platform.python_implementation(), platform.python_version(), sys.base_prefix, arguments]))"""


def describe(python: str = sys.executable) -> str:
    """Return the name, version and build of the interpreter, such as `CPython 3.13.1 with PGO and LTO`.

    PGO: it was built with profile-guided optimisation. LTO: with link-time optimisation.
    """
    asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    name, version, prefix, arguments = json.loads(asked)
    options = {"PGO": "--enable-optimizations", "LTO": "--with-lto"}
    build = [optimisation for optimisation, option in options.items() if option in arguments]
    if not build and prefix == "/usr" and Path("/etc/debian_version").exists():
        # Debian's rules build with both, without these options.
        return f"{name} {version} of Debian, with PGO and LTO"
    return f"{name} {version} {'with ' + ' and '.join(build) if build else 'without PGO and LTO'}"


def interpreters(testbed: Testbed, database: str, plan: Plan) -> Json | None:
    """Measure this interpreter and `plan.other_python`, which has the project installed. None without another one."""
    if not plan.other_python:
        return None
    pythons = {"this": sys.executable, "other": plan.other_python}
    contenders: dict[str, Callable[[], Json]] = {}
    programs = []
    for name, python in pythons.items():
        noop = testbed.start("benchmarks.servers", "noop", python=python)
        product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS), python=python)
        product.resume()
        contenders[f"{name} noop"] = functools.partial(
            measure, noop, "noop", duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS
        )
        contenders[f"{name} reserved"] = functools.partial(reserve, testbed, product, seconds=2 * plan.seconds)
        contenders[f"{name} reserved"]()
        programs += [noop, product.program]
    rounds = interleave(contenders, plan.rounds + 1)
    for program in programs:
        program.stop()
    return {"builds": {name: describe(python) for name, python in pythons.items()}, "rounds": rounds}
