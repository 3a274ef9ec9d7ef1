"""Benchmarks are commands, never timed tests: `python -m banpick_exp bench moe | engine | profile`."""
