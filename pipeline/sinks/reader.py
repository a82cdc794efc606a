"""For consumers: at least once becomes once.

A worker that dies between an output and its commit writes that output again, with the same id and equal content. And
an output of the wall clock (`final: false`) is followed by the log's own, with the same id. `SeenOnce` tells them.
"""

from collections import OrderedDict


class SeenOnce:
    """Remembers the newest `capacity` ids; repeats come close behind each other, so an old id need not be known.

    >>> seen = SeenOnce()
    >>> seen.is_new("a", final=False), seen.is_new("a", final=False), seen.is_new("a"), seen.is_new("a")
    (True, False, True, False)
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self._capacity = capacity
        self._final: OrderedDict[str, bool] = OrderedDict()

    def is_new(self, id: str, final: bool = True) -> bool:  # noqa: A002
        """Whether to take this output: its id is met for the first time, or as final after a provisional one."""
        known = self._final.get(id)
        if known is None:
            self._final[id] = final
            if len(self._final) > self._capacity:
                self._final.popitem(last=False)
            return True
        if final and not known:
            self._final[id] = True
            return True
        return False
