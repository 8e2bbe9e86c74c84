"""Flags that say something in a notation of their own, such as ``layer4*=0.7``, ``2.0G`` or ``~/data``."""

from __future__ import annotations

import ast
import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError


def as_path_text(text: str) -> str:
    """A path with the home folder that ``~`` or ``~user`` stands for; shells leave it in ``--flag=~/x`` and in files.

    The type of every flag that takes a path, with ``as_path``. What else the text says, such as ``auto``, stays.

    Raises:
        ArgumentTypeError: there is no such home folder; a folder called ``~`` is nothing that anybody wants.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        owner = text.split("/")[0]
        message = f"{text!r}: {owner} has no home folder here; write the path in full, or ./{owner}"
        raise ArgumentTypeError(message) from None


def as_path(text: str) -> Path:
    """As ``as_path_text``, for those who want a ``Path``."""
    return Path(as_path_text(text))


def check_several(given: Sequence[str] | None, what: str) -> None:
    """Refuse one text where several are expected: it would be taken letter by letter.

    Raises:
        UsageError: ``what`` was given so.
    """
    if isinstance(given, (str, bytes)):
        raise UsageError(f"{what} {given!r}: expected a list or tuple of texts, such as [{given!r}]")


def parse_kwargs(pairs: Sequence[str], flag: str = "--model-kwargs") -> dict[str, Any]:
    """``["width=32", "act_layer=silu"]`` -> ``{"width": 32, "act_layer": "silu"}``: Python literals, else text.

    Raises:
        UsageError: not a key and a value.
    """
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{flag} {pair!r}: expected KEY=VALUE, such as stem_width=16")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[key] = value
    return parsed


def plain_name(name: str) -> str:
    """A timm model's name without what a model hub writes before it: ``timm/resnet18.a1_in1k``."""
    for prefix in ("hf-hub:timm/", "hf_hub:timm/", "timm/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def parse_layer_rates(pairs: Sequence[str]) -> dict[str, float]:
    """``["layer4*=0.7"]`` -> ``{"layer4*": 0.7}``.

    Raises:
        UsageError: not a pattern and a rate.
    """
    rates = {}
    for pair in pairs:
        pattern, equals, text = pair.rpartition("=")
        try:
            rate = float(text)
        except ValueError:
            rate = -1.0
        if not (equals and pattern and 0 <= rate < 1):
            raise UsageError(f"--layer-rates {pair!r}: expected PATTERN=RATE with a share of blocks in [0, 1)")
        rates[pattern] = rate
    return rates


def parse_macs(text: str) -> float:
    """``2.0G`` -> 2e9; the suffixes are K, M and G.

    Raises:
        UsageError: not a positive number of MACs.
    """
    number, factor = text.strip(), 1.0
    if number[-1:].upper() in ("K", "M", "G"):
        number, factor = number[:-1], {"K": 1e3, "M": 1e6, "G": 1e9}[number[-1].upper()]
    try:
        macs = float(number) * factor
    except ValueError:
        macs = 0.0
    if not 0 < macs < math.inf:
        raise UsageError(f"--target-macs {text!r}: expected a number of MACs, such as 2.0G or 300M")
    return macs
