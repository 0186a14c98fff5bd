"""Lossless codecs for bf16 weights: one file each, whose docstring is the specification of its bytes."""
