"""The C harness: every kernel of every set this CPU has, and NEON emulated, on random shapes under guards.

tests/harness compares with double precision in buffers of exactly the size the kernels may touch. Here it is built as
the product is and under the sanitizers, and run on the same seeds every time; tests/harness/run.py takes others. The
kernels for AMX run under the sanitizers on an emulation of its tiles, on any CPU that has the rest of what they need.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from harness import run as harness

from subp_ext import _kernels

NATIVE = platform.machine()
TILES = ("amx_tile", "amx_bf16") if NATIVE == "x86_64" else ()  # what sanitized builds emulate


def build_and_run(directory, machine, sanitize, count, seed=1):
    if reason := harness.missing(machine):
        pytest.skip(reason)
    command = harness.build(directory, machine, sanitize)
    # Leaks are looked for by tracing the process, which neither emulators nor all containers allow.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([*command, str(count), str(seed)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_every_usable_set_ran(output, emulated=()):
    features = {name for name, usable in _kernels.cpu_features().items() if usable} | set(emulated)
    for kernel_set in _kernels.kernel_sets():
        ran = f"{kernel_set['name']}: " in output and f"{kernel_set['name']}: not run" not in output
        assert ran == (set(kernel_set["features"]) <= features), output


def test_every_kernel_under_sanitizers(tmp_path):
    assert_every_usable_set_ran(build_and_run(tmp_path, NATIVE, sanitize=True, count=100), TILES)


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])  # emulated: over a second a case
def test_neon_between_guard_pages(tmp_path, count):
    assert f"neon: {count} cases" in build_and_run(tmp_path, "aarch64", sanitize=False, count=count)


@pytest.mark.slow
def test_every_kernel_as_built_on_many_shapes(tmp_path):
    assert_every_usable_set_ran(build_and_run(tmp_path, NATIVE, sanitize=False, count=5000, seed=1000))


@pytest.mark.slow
def test_every_kernel_under_sanitizers_on_many_shapes(tmp_path):
    output = build_and_run(tmp_path, NATIVE, sanitize=True, count=2000, seed=1000)
    assert_every_usable_set_ran(output, TILES)


@pytest.mark.slow
def test_neon_under_sanitizers(tmp_path):
    assert "neon: 100 cases" in build_and_run(tmp_path, "aarch64", sanitize=True, count=100, seed=1000)


@pytest.mark.parametrize("arguments", [[], ["1"], ["1", "two"], ["1", "2", "--machine", "vax"]])
def test_misuse_is_told(arguments):
    done = subprocess.run([sys.executable, harness.__file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "usage:" in done.stderr
