"""Ways to a board, one file each: `-d ssh:pi@raspberrypi.local` loads `ssh` and gives it what follows the colon.

Each offers `open_place(address, limit_s, offline_wheels, progress)`. What happens over
a connection is the same for all: `_place`.
"""
