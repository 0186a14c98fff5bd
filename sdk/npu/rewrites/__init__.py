"""Rewrites of a model's graph for NPUs; one module each, see `edgekit.npu.rewriting`."""
