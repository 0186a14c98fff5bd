"""Changes that are not exact, one file each, made only where they are allowed and repaired afterwards."""
