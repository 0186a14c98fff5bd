"""What `edgekit bench NAME` runs: one file each."""
