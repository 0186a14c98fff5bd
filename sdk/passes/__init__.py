"""Compression passes: one file each. A pass is its options, so a plan is plain data."""
