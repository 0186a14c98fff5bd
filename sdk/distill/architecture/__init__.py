"""How a student is built: the parts that they share, and its widths for a number of parameters."""
