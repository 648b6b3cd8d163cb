"""See `explore`."""

from tests.simulation.explore import main

if __name__ == "__main__":
    raise SystemExit(main())
