"""The ops of TFLite in integers: one file a family."""
