"""Student encoders: one file each, its name the student's name with `_` for `-`."""
