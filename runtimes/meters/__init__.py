"""Energy meters, one file each: what it covers, whether it can be read here, and a counter of joules once open."""
