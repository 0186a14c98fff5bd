"""One self-contained page about bundles and what was measured of them: no script, no network, everything escaped."""
