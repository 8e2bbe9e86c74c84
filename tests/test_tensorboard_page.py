"""What TensorBoard shows of a run, in a real browser: the first screen, the custom scalars, the pictures of masks.

Needs Chromium (Debian, Ubuntu: apt-get install chromium). `SCREENSHOTS=DIR` keeps the pictures, to be looked at.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_monitor import record, small_pruner

from subp_dist.mask_picture import KEPT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium (Debian, Ubuntu: apt-get install chromium)"),
]
WIDTH, HEIGHT = 1920, 1080


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    record(folder, small_pruner())
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    server = subprocess.Popen([*command, "--load_fast=false"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            time.sleep(0.5)
            try:
                runs = urllib.request.urlopen(f"http://localhost:{port}/data/runs", timeout=60).read()
            except OSError:
                runs = b"[]"
            if b"tensorboard" in runs:
                break
        yield f"http://localhost:{port}/"
    finally:
        server.terminate()
        server.wait()


def browse(address: str, page: str, tmp_path: Path) -> tuple[str, np.ndarray]:
    """The document as the page's scripts leave it, and the screen ``[height, width, 3]``."""
    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)).absolute() / f"{page}.png"
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},{HEIGHT}"]
    command += [f"--user-data-dir={tmp_path}", "--hide-scrollbars", "--virtual-time-budget=30000"]
    command += ["--dump-dom", f"--screenshot={picture}", f"{address}?smoothing=0#{page}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return ended.stdout, np.asarray(Image.open(picture).convert("RGB"))


def test_the_first_screen_has_loss_top1_and_both_sparsities(address, tmp_path):
    document, screen = browse(address, "timeseries", tmp_path)
    cards = re.findall(r"<card-view.*?(\w+/\w+)", document, re.S)
    assert cards == [
        *("learning/loss_train", "learning/loss_val", "learning/top1"),
        *("sparsity/actual", "sparsity/target"),
    ]
    assert screen.shape[:2] == (HEIGHT, WIDTH)


def test_the_custom_scalars_are_drawn(address, tmp_path):
    _, screen = browse(address, "custom_scalars", tmp_path)
    colours = np.unique(screen[100:, 500:].reshape(-1, 3), axis=0)
    assert len(colours) > 100


def test_masks_are_seen(address, tmp_path):
    _, screen = browse(address, "images", tmp_path)
    kept = (np.abs(screen.astype(int) - KEPT).sum(2) < 12).sum()
    assert kept > 10_000
