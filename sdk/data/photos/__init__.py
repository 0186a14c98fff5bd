"""Photographs in the public domain. Sources in ../SOURCES.md."""
