"""Benchmarks: of a file (`python -m subp_ext.bench FILE.subp`), of kernels, and of uniform against other block rows."""
