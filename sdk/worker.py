"""A process that opens one bundle and times calls when asked: `python -m edgekit.worker BUNDLE THREADS`.

It speaks one JSON document a line. First it says how loading went; then for each `{"calls": N}` it answers
`{"times_s": [...]}`. For a language model it answers `{"tokens": N}` with the seconds from the start of a text to each
of its N tokens, `"prompt_tokens"`, and the tokens' `"ids"`. `{"feeds": ...}` is answered by the outputs of one call,
`{"outputs": ..., "time_s": ...}`, both as `edgekit.wire` writes arrays. `{"energy": {...}}` holds an `EnergyRequest`,
and its answer `EnergyFigures`. `{"watch": {...}}` holds one too, opens its meter and says which, and
`{"snapshot": true}` then reads it. `{"op_threads": N}` is answered with an `OpProfile`, `{"copy_threads": N}` with a
`Bandwidth`. When its input ends it says its peak memory, what the session itself takes and which build the runtime is,
and leaves, so it never outlives who asked.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import sys
from functools import partial
from time import perf_counter

import msgspec

from edgekit import registry
from edgekit.bandwidth import bandwidth
from edgekit.bundle import Bundle
from edgekit.decoding import Decoder, generation_of, timed_text
from edgekit.energy import Counter
from edgekit.errors import EdgekitError, MeterMissing
from edgekit.generation import timing_prompt
from edgekit.host import host_state, peak_rss_bytes
from edgekit.inference import RUNTIMES, open_session, sample_feeds, time_ops
from edgekit.metering import energy_figures, real_meter
from edgekit.meters import EnergyRequest, unit_of
from edgekit.processing import Arrays
from edgekit.session import CountedSession, Session
from edgekit.toolchains import native_build
from edgekit.wire import Watch, decoded, encoded

OVERHEAD_CALLS, OVERHEAD_MOST_S = 9, 0.5


def main(path: str, threads: str) -> None:
    """Serve until standard input ends or something fails, which is the last answer then."""
    try:
        _serve(path, int(threads))
    except (EdgekitError, ImportError) as error:
        _say({"error": str(error), "type": type(error).__name__})


def _serve(path: str, threads: int) -> None:
    bundle = Bundle.open(path)
    feeds = sample_feeds(bundle)
    runtime = registry.load(RUNTIMES, bundle.artifact.runtime)
    backend = runtime.load_backend()  # so that load_s is the model's, not the package's
    start = perf_counter()
    session = open_session(bundle, threads=threads)
    loaded = perf_counter()
    session.run(feeds)
    first = perf_counter()
    _say(
        {
            "load_s": loaded - start,
            "first_run_s": first - loaded,
            "runtime_version": backend,
            "state": msgspec.to_builtins(host_state()),
        }
    )
    watched: Counter | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "tokens" in asked:
            prompt = timing_prompt(generation_of(bundle))
            times, ids = timed_text(Decoder.of(bundle, session), prompt, asked["tokens"])
            _say({"times_s": times, "prompt_tokens": len(prompt), "ids": ids})
        elif "op_threads" in asked:
            _say(msgspec.to_builtins(time_ops(bundle, feeds, threads=asked["op_threads"])))
        elif "copy_threads" in asked:
            _say(msgspec.to_builtins(bandwidth(asked["copy_threads"])))
        elif "energy" in asked:
            request = msgspec.convert(asked["energy"], EnergyRequest)
            run = partial(_call_times, session, feeds)
            _say(msgspec.to_builtins(energy_figures(request, unit_of(bundle), run)))
        elif "watch" in asked:
            watched, said = _watch(msgspec.convert(asked["watch"], EnergyRequest), unit_of(bundle))
            _say(msgspec.to_builtins(said))
        elif "snapshot" in asked and watched is not None:
            _say(msgspec.to_builtins(watched.read()))
        elif "feeds" in asked:
            given = decoded(asked["feeds"])
            before = perf_counter()
            outputs = session.run(given)
            _say({"time_s": perf_counter() - before, "outputs": encoded(outputs)})
        else:
            _say({"times_s": _call_times(session, feeds, asked["calls"])})
    _say(
        {
            "peak_rss_bytes": peak_rss_bytes(),  # before what follows takes some
            "state": msgspec.to_builtins(host_state()),
            "overhead_s": _overhead_s(bundle, session, feeds),
            "runtime_build": native_build(re.split(r"[<>=]", bundle.artifact.runtime_version_range)[0]),
        }
    )


def _watch(request: EnergyRequest, unit: str) -> tuple[Counter | None, Watch]:
    """An open meter, or why there is none, and what to say of it."""
    try:
        counter = real_meter(request, unit).open()
    except MeterMissing as error:
        return None, Watch(reason=str(error))
    return counter, Watch(info=counter.info)


def _call_times(session: Session, feeds: Arrays, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        before = perf_counter()
        session.run(feeds)
        times.append(perf_counter() - before)
    return times


def _overhead_s(bundle: Bundle, session: Session, feeds: Arrays) -> float:
    """Median seconds of a session around a model that does nothing, on caches as cold as the real one leaves them."""
    results = list(session.run(feeds).values())
    empty = CountedSession(bundle, lambda _: results)
    times: list[float] = []
    start = perf_counter()
    while not times or (len(times) < OVERHEAD_CALLS and perf_counter() - start < OVERHEAD_MOST_S):
        session.run(feeds)
        times += _call_times(empty, feeds, 1)
    return statistics.median(times)


def _say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # whoever asked has gone, and said why
        main(*sys.argv[1:])
