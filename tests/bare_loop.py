"""onnxruntime's own run in a bare loop, in the words of `edgekit.worker`, for `make bench-profile`.

`python tests/bare_loop.py BUNDLE`. Nothing of edgekit stands between the clock and `InferenceSession.run`.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

import msgspec
import onnxruntime

from edgekit.bundle import Bundle
from edgekit.host import host_state, peak_rss_bytes
from edgekit.inference import sample_feeds


def main(path: str) -> None:
    bundle = Bundle.open(path)
    feeds, options = sample_feeds(bundle), onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    start = perf_counter()
    session = onnxruntime.InferenceSession(bundle.artifact_path, options)
    loaded = perf_counter()
    session.run(None, feeds)
    opening = {"load_s": loaded - start, "first_run_s": perf_counter() - loaded}
    state = msgspec.to_builtins(host_state())
    print(json.dumps({**opening, "runtime_version": onnxruntime.__version__, "state": state}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(json.loads(line)["calls"]):
            before = perf_counter()
            session.run(None, feeds)
            times.append(perf_counter() - before)
        print(json.dumps({"times_s": times}), flush=True)
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes(), "state": state}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
