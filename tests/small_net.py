"""A network of six convolutions, one of each kind that a pruner tells apart."""

from __future__ import annotations

import torch
from torch import nn

PRUNED = ("whole", "tail", "grouped", "last")


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.whole = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.tail = nn.Conv2d(12, 22, 1)
        self.grouped = nn.Conv2d(22, 12, 3, padding=1, groups=2)
        self.last = nn.Conv2d(12, 40, 1, bias=False)
        self.fc = nn.Linear(40, 5)

    def forward(self, x):
        x = self.grouped(self.tail(self.depthwise(self.whole(self.stem(x)))).relu()).relu()
        return self.fc(self.last(x).mean((2, 3)))


def small_net(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()
