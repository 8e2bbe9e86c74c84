"""Images per second of FFCV and of torchvision, over the same photographs: ``python -m subp_dist.bench.data SRC``.

Both crop at random to 224 pixels, flip and normalise, with the same number of workers. What limits them: large JPEGs
the decoder; small JPEGs the decoder and the resize; raw images memory. The first batch of each is left out, for it
contains start-up and compilation.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

from subp_ext import affinity

from ..data.beton import Beton, require_ffcv
from ..data.ffcv_loader import Crop, FFCVLoader, Output
from ..data.storage import Storage
from ..data.write import open_pictures, verify, write
from ..errors import UsageError, report_usage_errors
from ..flag_values import as_path, as_path_text

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@report_usage_errors
def cli() -> None:
    """Console entry: a table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="subp-bench-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("src", type=as_path_text, metavar="SRC", help="folder with train/ of class folders of photographs")
    add(
        "--storage", nargs="+", default=["0_1.0_90", "256_1.0_90", "256_0.0_90"], help="presets of subp_dist.data.write"
    )
    add("--betons", type=as_path, metavar="DIR", help="keep the files here, and use those that are there")
    add("--workers", type=int, default=2, help="threads of FFCV, processes of torchvision's loader")
    add("--batch-size", type=int, default=128, help="images per batch")
    add("--img-size", type=int, default=224, help="pixels of a side that loaders deliver")
    add("--seconds", type=float, default=8, help="time to measure each for")
    args = parser.parse_args()
    for flag in ("workers", "batch_size", "img_size", "seconds"):
        if not 0 < getattr(args, flag) < math.inf:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected more than 0")
    require_ffcv()
    presets = [Storage.parse(text) for text in args.storage]
    if not (Path(args.src) / "train").is_dir():
        raise UsageError(f"{args.src}: it has no train/ of class folders")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.betons or temporary)
        betons = {storage: _beton(args.src, folder, storage, args.workers) for storage in presets}
        rows = measure(Path(args.src) / "train", betons, args.batch_size, args.img_size, args.workers, args.seconds)
    print(as_table(rows))
    print(json.dumps(rows))


def _beton(src: str, folder: Path, storage: Storage, workers: int) -> Beton:
    path = folder / f"train_{storage}.beton"
    if not path.exists():
        pictures = open_pictures("", src, "train")
        indices, largest = verify(pictures, storage, workers, skip=False)
        write(path, pictures, indices, storage, workers, largest)
    return Beton.open(path)


def measure(
    pictures: Path, betons: dict[Storage, Beton], batch_size: int, img_size: int, workers: int, seconds: float
) -> list[dict]:
    """Measure torchvision's loader over a folder of classes, and FFCV's over files of the same pictures.

    Args:
        pictures: the folder.
        betons: FFCV's files, by how they store the pictures.
        batch_size: images per batch.
        img_size: pixels of a side that loaders deliver.
        workers: threads of FFCV, processes of torchvision's loader.
        seconds: time to measure each for.

    Returns:
        Rows of ``loader``, ``storage`` (jpeg, raw, mixed), ``resolution`` (largest side as stored, None: as it was),
        ``workers`` and ``images_per_s``.

    Raises:
        UsageError: there are fewer than three batches of pictures.
    """
    loader = torchvision_loader(pictures, batch_size, img_size, workers)
    if len(loader) < 3:
        count, least = len(loader.dataset), 3 * batch_size
        raise UsageError(f"{pictures}: {count} pictures; at least {least} are needed, or a smaller --batch-size")
    rate = images_per_second(_epochs(loader, loader.sampler.set_epoch), seconds)
    rows = [{"loader": "torchvision", "storage": "jpeg", "resolution": None, "workers": workers, "images_per_s": rate}]
    for storage, beton in betons.items():
        ffcv = FFCVLoader(beton, batch_size, img_size, Crop(train=True), Output(_MEAN, _STD), workers=workers)
        kind = {0.0: "raw", 1.0: "jpeg"}.get(storage.jpeg_share, "mixed")
        row = {"loader": "ffcv", "storage": kind, "resolution": storage.max_resolution or None, "workers": workers}
        rows.append(row | {"images_per_s": images_per_second(_epochs(ffcv, ffcv.set_epoch), seconds)})
    return rows


def torchvision_loader(pictures: Path, batch_size: int, size: int, workers: int) -> DataLoader:
    """What most people train ImageNet with (faster than the same in transforms.v2); its workers stay between epochs."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )
    dataset = datasets.ImageFolder(str(pictures), transform)
    sampler = DistributedSampler(dataset, 1, 0, drop_last=True)
    return DataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )


def _epochs(loader: Iterable, set_epoch: Callable[[int], None]) -> Iterator:
    epoch = 0
    while True:
        set_epoch(epoch)
        yield from loader
        epoch += 1


def images_per_second(batches: Iterator, seconds: float) -> float:
    """Rate after the first batch, over at least some seconds; copies of nothing are made."""
    next(batches)
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(batches)[0])
    batches.close()
    return round(images / elapsed, 1)


def as_table(rows: list[dict]) -> str:
    """The rows as text, each also relative to the first."""
    lines = [f"{'loader':<13}{'storage':<9}{'stored at':<11}{'workers':>7}{'images/s':>11}{'ratio':>8}"]
    for row in rows:
        stored = f"{row['resolution']} px" if row["resolution"] else "full size"
        lines.append(
            f"{row['loader']:<13}{row['storage']:<9}{stored:<11}{row['workers']:>7}{row['images_per_s']:>11.0f}"
            f"{row['images_per_s'] / rows[0]['images_per_s']:>7.2f}x"
        )
    return "\n".join([*lines, f"{len(affinity.usable())} usable cores"])


if __name__ == "__main__":
    cli()
