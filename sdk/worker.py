"""A process that opens one bundle and times calls when asked: `python -m edgekit.worker BUNDLE THREADS`.

It speaks one JSON document a line. First it says how loading went; then for each `{"calls": N}` it answers
`{"times_s": [...]}`. For a language model it answers `{"tokens": N}` with the seconds from the start of a text to each
of its N tokens, and `"prompt_tokens"`. When its input ends it says its peak memory and leaves, so it never outlives who
asked.
"""

from __future__ import annotations

import contextlib
import json
import sys
from time import perf_counter

import msgspec

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.decoding import Decoder, timing_prompt, token_times
from edgekit.errors import EdgekitError
from edgekit.host import host_state, peak_rss_bytes
from edgekit.inference import RUNTIMES, open_session, sample_feeds
from edgekit.processing import Arrays
from edgekit.session import Session


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
    for line in sys.stdin:
        asked = json.loads(line)
        if "tokens" in asked:
            prompt = timing_prompt(bundle)
            times = token_times(Decoder.of(bundle, session), prompt, asked["tokens"])
            _say({"times_s": times, "prompt_tokens": len(prompt)})
        else:
            _say({"times_s": _call_times(session, feeds, asked["calls"])})
    _say({"peak_rss_bytes": peak_rss_bytes(), "state": msgspec.to_builtins(host_state())})


def _call_times(session: Session, feeds: Arrays, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        before = perf_counter()
        session.run(feeds)
        times.append(perf_counter() - before)
    return times


def _say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # whoever asked is interrupted too, and says so
        main(*sys.argv[1:])
