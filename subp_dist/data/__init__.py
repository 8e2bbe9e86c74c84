"""Data sets and loaders: the built-in digits, folders of pictures, and timm's named data sets."""

from .loaders import Data, create_data
from .resumable import ResumableLoader

__all__ = ["Data", "ResumableLoader", "create_data"]
