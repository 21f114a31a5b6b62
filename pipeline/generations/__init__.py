"""Students that teach the next students: a store -> fold students -> their store -> the next ones.

settings.py  Generations: what decides the rounds, beside the student's own settings
rounds.py    the driver: each round trains, caches and measures; all of it goes on where it was stopped

The only room below the command line that calls both stages; they still meet in stores alone.
"""
