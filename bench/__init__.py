"""Benchmarks: `python -m bench` runs them all; each prints one JSON object a line: name, value, goal, ok."""
