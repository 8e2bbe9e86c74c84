"""Whole networks against other engines."""
