"""GPU kernels: one folder per op, the fast version beside the reference that defines it. See README.md."""
