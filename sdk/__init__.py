"""edgekit: a PyTorch model in, a verified bundle for a device out, with honest numbers.

    import edgekit
    bundle = edgekit.export("zoo:efficientnet_lite0", "raspberrypi5", "out")
    with edgekit.open_session(bundle) as session:
        outputs = session.run(edgekit.prepare(bundle, "photo.jpg"))

Importing this package imports neither numpy nor torch; each name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgekit.benchmark import compare as compare
    from edgekit.benchmark import measure as measure
    from edgekit.bundle import Bundle as Bundle
    from edgekit.calibration import calibrate as calibrate
    from edgekit.compression import compress as compress
    from edgekit.decoding import generate as generate
    from edgekit.drafting import ExportOptions as ExportOptions
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.generation import Sampling as Sampling
    from edgekit.inference import answer as answer
    from edgekit.inference import open_session as open_session
    from edgekit.inference import prepare as prepare
    from edgekit.lossless import compress_weights as compress_weights
    from edgekit.lossless import decompress_weights as decompress_weights
    from edgekit.lossless import verify_weights as verify_weights
    from edgekit.metering import meter as meter
    from edgekit.model import Loaded as Loaded
    from edgekit.multipart import export_parts as export_parts
    from edgekit.pipeline import export as export
    from edgekit.planning import plan as plan
    from edgekit.profile import find_device as find_device
    from edgekit.source import load as load
    from edgekit.verification import verify as verify

_HOME = {
    "Bundle": "bundle",
    "EdgekitError": "errors",
    "ExportOptions": "drafting",
    "Loaded": "model",
    "Sampling": "generation",
    "answer": "inference",
    "calibrate": "calibration",
    "compare": "benchmark",
    "compress": "compression",
    "compress_weights": "lossless",
    "decompress_weights": "lossless",
    "export": "pipeline",
    "export_parts": "multipart",
    "find_device": "profile",
    "generate": "decoding",
    "load": "source",
    "measure": "benchmark",
    "meter": "metering",
    "open_session": "inference",
    "plan": "planning",
    "prepare": "inference",
    "verify": "verification",
    "verify_weights": "lossless",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(import_module(f"edgekit.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            from edgekit.toolchains import torch_missing

            raise torch_missing(error) or error from error
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
