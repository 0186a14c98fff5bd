"""A process that opens one bundle and times calls when asked: `python -m edgekit.worker BUNDLE THREADS`.

It speaks one JSON document a line. First it says how loading went; then for each `{"calls": N}` it answers
`{"times_s": [...]}`; when its input ends it says its peak memory and leaves, so it never outlives who asked.
"""

from __future__ import annotations

import contextlib
import json
import sys
from time import perf_counter

import msgspec

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.host import host_state, peak_rss_bytes
from edgekit.inference import RUNTIMES, open_session, sample_feeds


def main(path: str, threads: str) -> None:
    """Serve until standard input ends."""
    try:
        bundle = Bundle.open(path)
        feeds = sample_feeds(bundle)
        runtime = registry.load(RUNTIMES, bundle.artifact.runtime)
        backend = runtime.load_backend()  # so that load_s is the model's, not the package's
        start = perf_counter()
        session = open_session(bundle, threads=int(threads))
        loaded = perf_counter()
        session.run(feeds)
        first = perf_counter()
    except (EdgekitError, ImportError) as error:
        _say({"error": str(error), "type": type(error).__name__})
        return
    _say(
        {
            "load_s": loaded - start,
            "first_run_s": first - loaded,
            "runtime_version": backend,
            "state": msgspec.to_builtins(host_state()),
        }
    )
    for line in sys.stdin:
        times = []
        for _ in range(json.loads(line)["calls"]):
            before = perf_counter()
            session.run(feeds)
            times.append(perf_counter() - before)
        _say({"times_s": times})
    _say({"peak_rss_bytes": peak_rss_bytes(), "state": msgspec.to_builtins(host_state())})


def _say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # whoever asked is interrupted too, and says so
        main(*sys.argv[1:])
