"""Rules of NPU architectures: one TOML file per architecture, read by `edgekit.npu.rules`."""
