"""Sample data that ships with edgekit, for calibration and verification. Sources in SOURCES.md."""
