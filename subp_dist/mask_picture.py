"""A block mask as a picture that can be read: what is kept, block row by block row, with a frame and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .layer_report import LayerReport

KEPT, PRUNED = (31, 78, 121), (222, 226, 230)
_PAPER, _INK, _GRID = (255, 255, 255), (40, 40, 40), (255, 255, 255)
_WIDTH, _HEIGHT = 768, 160  # pixels that a mask is to have at least, if whole factors up to the largest one allow it
_LARGEST = 48  # pixels of a block
_GRID_FROM = 6  # pixels of a block from which on lines between blocks leave enough of it
_MARGIN = 12
_LETTERS = (
    31  # letters of the font's size that go into a picture's width: to be read where TensorBoard shrinks it to a card
)


def block_pixels(rows: int, channels: int) -> tuple[int, int]:
    """Height and width of a block in the picture of a mask ``[R, I]``: whole numbers, so that all blocks are alike.

    Few rows of many blocks would be a thin strip; so blocks may be higher than they are wide.
    """
    width = min(_LARGEST, max(1, -(-_WIDTH // channels)))
    return min(_LARGEST, max(width, -(-_HEIGHT // rows))), width


def draw_mask(mask: Tensor, layer: LayerReport) -> np.ndarray:
    """The picture ``[height, width, 3]`` of a mask, uint8.

    Args:
        mask: bool ``[R, I]``; a block row is a row of the picture, an input channel a column.
        layer: what the legend says of it.
    """
    kept = mask.cpu().numpy()
    height, width = block_pixels(*kept.shape)
    blocks = np.where(kept[..., None], np.uint8(KEPT), np.uint8(PRUNED)).repeat(height, 0).repeat(width, 1)
    if height >= _GRID_FROM:
        blocks[height - 1 :: height] = _GRID
    if width >= _GRID_FROM:
        blocks[:, width - 1 :: width] = _GRID
    size = min(max(blocks.shape[1], _WIDTH // 2), 1200) // _LETTERS
    font = ImageFont.load_default(size)
    title, legend = _legend(layer)
    entries = (("kept", KEPT), ("pruned", PRUNED))
    line = round(1.5 * size)
    swatches = sum(line + font.getlength(word) + _MARGIN for word, _ in entries)
    text_width = round(max(font.getlength(title), font.getlength(legend), swatches))
    width, height = max(blocks.shape[1] + 2, text_width) + 2 * _MARGIN, blocks.shape[0] + 2 + 3 * line + 3 * _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    draw.text((_MARGIN, _MARGIN + line), legend, _INK, font)
    x, y = _MARGIN, _MARGIN + 2 * line
    for word, color in entries:
        draw.rectangle((x, y + 2, x + size, y + 2 + size), color, _INK)
        draw.text((x + line, y), word, _INK, font)
        x += round(line + font.getlength(word) + _MARGIN)
    y += line + _MARGIN
    draw.rectangle((_MARGIN, y, _MARGIN + blocks.shape[1] + 1, y + blocks.shape[0] + 1), outline=_INK)
    picture.paste(Image.fromarray(blocks), (_MARGIN + 1, y + 1))
    return np.asarray(picture)


def _legend(layer: LayerReport) -> tuple[str, str]:
    every = f"each row keeps {layer.kept} of {layer.blocks_per_row} blocks"
    uneven = f"a row keeps {layer.kept:.1f} of {layer.blocks_per_row} blocks on average"
    return (
        f"{layer.name}: {every if layer.is_uniform else uneven} ({100 * layer.kept_share:.1f} %)",
        f"{layer.block_rows} rows of {layer.block_size} output channels; columns are input channels",
    )
