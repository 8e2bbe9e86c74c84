"""Benchmarks: whole networks against other engines, a training step, a mask update, the loaders of data."""
