"""Which ops of a model an NPU runs, by its rules: the audit, and how screen and page show it."""
