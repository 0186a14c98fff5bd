"""What rounding to few bits does to a model's numbers: schemes, ranges, a simulation, and which ops need more bits."""
