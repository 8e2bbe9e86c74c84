"""A training loader that can start anywhere in an epoch, and delivers there what it would have delivered anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from torch.utils.data import Dataset, DistributedSampler

from ..seeds import derive_seed, kept_cpu_generators, seed_cpu
from .guarded import GuardedLoader


class SeededDataset(Dataset):
    """Draws the augmentation of every item from (seed, epoch, index) alone, in whatever process it is loaded."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return list(self.load([index]))[0]

    def load(self, indices: Iterable[int]) -> Iterator:
        """Items, one after the other."""
        # Without worker processes the generators are those of the training step.
        with kept_cpu_generators():
            for index in indices:
                seed_cpu(derive_seed(self.seed, self.epoch, index))
                yield self.dataset[index]


class _Sampler(DistributedSampler):
    """A rank's share of an epoch, from one of its images on."""

    first = 0

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.first, None)


class ResumableLoader(GuardedLoader):
    """Shuffles anew each epoch and drops the incomplete batch.

    All that training asks of a loader: ``set_epoch`` before an epoch is iterated, and ``len``, the batches of a whole
    epoch wherever it starts.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        on_epoch: Callable[[int], None] = lambda _: None,
        **kwargs,
    ) -> None:
        sampler = _Sampler(dataset, world_size, rank, shuffle=True, seed=seed, drop_last=True)
        self.seeded = SeededDataset(dataset, seed)
        super().__init__(self.seeded, batch_size, sampler=sampler, drop_last=True, **kwargs)
        self.on_epoch = on_epoch

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that is iterated next; batches before ``first_batch`` are left out, and cost nothing."""
        self.on_epoch(epoch)
        self.sampler.set_epoch(epoch)
        self.seeded.epoch = epoch
        self.sampler.first = first_batch * self.batch_size
