"""Runtimes: one file per engine that runs a bundle. Nothing here imports torch."""
