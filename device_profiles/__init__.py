"""Device profiles: one TOML file per device, read by `edgekit.profile`."""
