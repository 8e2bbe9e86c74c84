"""Grids of training runs that compare variants of the method: ``python -m subp_dist.study --help``."""
