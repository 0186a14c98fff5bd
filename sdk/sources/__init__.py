"""Model sources: one file per way to name a PyTorch model on the command line."""
