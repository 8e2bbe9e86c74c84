"""Random numbers that follow from where they are drawn, so that no random state has to be saved.

Every optimizer step and every training image seeds the generators anew, from its own place in the run: a run that goes
on in the middle of an epoch draws what the undisturbed run drew, and images do not depend on ranks or workers.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*place: int) -> int:
    """A seed of 63 bits that belongs to a place, such as (seed, epoch, image)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(place)}q", *place), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_cpu(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed the CPU's generators and, where GPUs are in use, those of all GPUs."""
    seed_cpu(seed)
    if torch.cuda.is_initialized():  # else torch keeps each call, with its stack, for the time when they are
        torch.cuda.manual_seed_all(seed)


def seed_with(device: torch.device, seed: int) -> None:
    """Seed the CPU's generators, and that of a GPU if the device is one."""
    seed_cpu(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


@contextmanager
def kept_cpu_generators() -> Iterator[None]:
    """Give Python's, NumPy's and torch's CPU generator their states back at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """As ``kept_cpu_generators``, and with a GPU's if the device is one; its state lies on the host, nothing waits."""
    with kept_cpu_generators():
        if device.type != "cuda":
            yield
            return
        state = torch.cuda.get_rng_state(device)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(state, device)
