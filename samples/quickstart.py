"""From a PyTorch model to a label on a photograph, through the Python API.

Run it:  python samples/quickstart.py [PHOTO] [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import edgekit


def main(photo: str, out: str) -> None:
    model = edgekit.load("zoo:efficientnet_lite0")
    device = edgekit.find_device("raspberrypi5")
    options = edgekit.ExportOptions(precision="int8", measure=False)
    bundle = edgekit.export(model, device, out, options, progress=print)

    parity = edgekit.verify(bundle)
    print(f"verified: {parity.ok}, SQNR {parity.sqnr_db:.1f} dB against PyTorch")

    with edgekit.open_session(bundle) as session:
        outputs = session.run(edgekit.prepare(bundle, photo))
        for each in edgekit.answer(bundle, outputs)["labels"][:3]:
            print(f"{each['p']:.2f}  {each['label']}")
        print(f"{session.stats().calls} call, {1e3 * session.stats().total_s:.1f} ms")

    measured = edgekit.measure(bundle, calls=60)
    print(f"p50 {1e3 * measured.latency.p50_s:.2f} ms on this machine, energy {measured.energy.provenance}")


if __name__ == "__main__":
    shipped = Path(edgekit.__file__).parent / "data" / "photos" / "coffee.jpg"
    with tempfile.TemporaryDirectory() as folder:
        given = sys.argv[1:] + [str(shipped), f"{folder}/out"][len(sys.argv) - 1 :]
        main(*given[:2])
