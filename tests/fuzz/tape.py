"""Random choices that are read from bytes, so that a fuzzer of bytes makes them."""

import random


class Tape(random.Random):
    """A `random.Random` whose numbers are the bytes of `data`, in order. After its end, every choice is the first one.

    So a shorter input is a simpler case, and a small change of the input changes one choice and not all that follow.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._position = 0

    def _take(self, count: int) -> int:
        taken = self._data[self._position : self._position + count]
        self._position += count
        return int.from_bytes(taken)

    def random(self) -> float:
        """A number in [0, 1) from two bytes. At the end it is nearly 1: `random() < 0.1` means a rare case."""
        return 1 - (self._take(2) + 1) / (1 << 16)

    def getrandbits(self, k: int) -> int:
        return self._take((k + 7) // 8) & ((1 << k) - 1)

    def _randbelow(self, n: int) -> int:
        """A number below `n` for `choice`, `randrange`, `sample` and `shuffle`. It never draws twice."""
        return self._take(((n - 1).bit_length() + 7) // 8) % n
