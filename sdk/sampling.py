"""A counter of joules made from a sensor of watts: a helper thread samples it and integrates by trapezoids."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from edgekit.energy import Counter, MeterInfo, Snapshot
from edgekit.errors import EdgekitError

Watts = dict[str, float]  # by domain


class Sampler(Counter):
    """Asks `watts` every `info.update_period_s` seconds, and once more whenever it is read."""

    def __init__(self, info: MeterInfo, watts: Callable[[], Watts], close: Callable[[], None] = lambda: None) -> None:
        self._info, self._watts, self._close = info, watts, close
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._last, self._t_ns, self._samples = watts(), time.monotonic_ns(), 1
        self._joules = dict.fromkeys(self._last, 0.0)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name=f"edgekit {info.id}", daemon=True)
        self._thread.start()

    @property
    def info(self) -> MeterInfo:
        """What is sampled."""
        return self._info

    def read(self) -> Snapshot:
        """The joules so far, up to a sample that is taken now."""
        if self._failure:
            raise EdgekitError(f"meter '{self._info.id}' stopped answering: {self._failure}") from self._failure
        self._sample()
        with self._lock:
            return Snapshot(t_ns=self._t_ns, joules=dict(self._joules), updates=self._samples)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        self._close()

    def _serve(self) -> None:
        while not self._stop.wait(self._info.update_period_s):
            try:
                self._sample()
            except Exception as error:  # whoever reads next is told
                self._failure = error
                return

    def _sample(self) -> None:
        with self._lock:
            watts, now = self._watts(), time.monotonic_ns()
            joules = trapezoid((self._t_ns, now), (self._last, watts))
            self._joules = {name: self._joules[name] + joules[name] for name in self._joules}
            self._last, self._t_ns, self._samples = watts, now, self._samples + 1


def trapezoid(times_ns: Sequence[int], watts: Sequence[Watts]) -> dict[str, float]:
    """Joules by domain under power samples that straight lines join."""
    return {
        name: sum(
            (watts[k][name] + watts[k + 1][name]) / 2 * (times_ns[k + 1] - times_ns[k]) / 1e9
            for k in range(len(watts) - 1)
        )
        for name in watts[0]
    }
