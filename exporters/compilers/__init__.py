"""Compilers of device vendors: one file each, named as device profiles name them. See `edgekit.compiling`."""
