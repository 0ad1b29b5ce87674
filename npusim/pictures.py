"""Clips side by side, labelled and enlarged: ``clips.gif`` (animated) and ``clips.png`` (one row of frames each)."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

SCALE = 4
FRAME_MS = 125
MARGIN, LABEL_HEIGHT, LABEL_WIDTH, FONT_SIZE = 12, 30, 130, 18
BACKGROUND, INK = (255, 255, 255), (32, 32, 32)
COLOURS = 256


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures do not depend on what the system has."""
    return ImageFont.load_default(FONT_SIZE)


def _enlarged(frame: Frames) -> Image.Image:
    """Every pixel a square, so that what is seen is what was computed."""
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)


def side_by_side(clips: Mapping[str, Frames], title: str, index: int) -> Image.Image:
    """Frame ``index`` of every clip in one row, its name above it; ``title`` on top.

    Clips are (T, H, W, 3) uint8 of one shape.
    """
    height, width = (SCALE * size for size in next(iter(clips.values())).shape[1:3])
    total = MARGIN + len(clips) * (width + MARGIN)
    sheet = Image.new("RGB", (total, 2 * LABEL_HEIGHT + height + 2 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN // 2), _fitting(title, total - 2 * MARGIN), INK, _font())
    for column, (name, frames) in enumerate(clips.items()):
        left = MARGIN + column * (width + MARGIN)
        draw.text((left, LABEL_HEIGHT + MARGIN // 2), _fitting(name, width), INK, _font())
        sheet.paste(_enlarged(frames[index]), (left, 2 * LABEL_HEIGHT + MARGIN))
    return sheet


def gif(clips: Mapping[str, Frames], title: str) -> bytes:
    """An endless animation of `side_by_side`, 8 frames a second."""
    count = len(next(iter(clips.values())))
    sheets = [side_by_side(clips, title, index) for index in range(count)]
    # One palette for all frames: separate ones make still areas flicker.
    together = Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))
    palette = together.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *rest = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0, optimize=False)
    return data.getvalue()


def png(clips: Mapping[str, Frames], title: str) -> bytes:
    """All frames: one row for each clip, its name at the left; ``title`` on top."""
    count, height, width = next(iter(clips.values())).shape[:3]
    cell_height, cell_width = height * SCALE, width * SCALE
    total = LABEL_WIDTH + count * (cell_width + MARGIN)
    sheet = Image.new("RGB", (total, LABEL_HEIGHT + MARGIN + len(clips) * (cell_height + MARGIN)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN // 2), _fitting(title, total - 2 * MARGIN), INK, _font())
    for row, (name, frames) in enumerate(clips.items()):
        top = LABEL_HEIGHT + MARGIN + row * (cell_height + MARGIN)
        draw.text((MARGIN, top), _fitting(name, LABEL_WIDTH - 2 * MARGIN), INK, _font())
        for column, frame in enumerate(frames):
            sheet.paste(_enlarged(frame), (LABEL_WIDTH + column * (cell_width + MARGIN), top))
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=False)
    return data.getvalue()


def _fitting(text: str, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than ``width`` pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def contact_sheet(
    columns: Mapping[str, Mapping[str, Frames]],
    across: int = 4,
    frames: tuple[int, int] = (0, 4),
    label_width: int = LABEL_WIDTH // 2,
) -> bytes:
    """Several captions at once; ``columns`` maps caption to row name to clip (T, H, W, 3) uint8.

    Two ``frames`` of each clip are shown, ``across`` captions side by side, further ones below; the rows' names stand
    left of them, ``label_width`` pixels wide. Returns a PNG.
    """
    rows = list(next(iter(columns.values())))
    height, width = next(iter(next(iter(columns.values())).values())).shape[1:3]
    zoom = SCALE // 2
    cell_width, cell_height = len(frames) * width * zoom + MARGIN, height * zoom + MARGIN // 2
    across = min(across, len(columns))
    bands = -(-len(columns) // across)
    band_height = LABEL_HEIGHT + len(rows) * cell_height + MARGIN
    left_margin = label_width + MARGIN
    image = Image.new("RGB", (left_margin + across * cell_width, bands * band_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, (caption, clips) in enumerate(columns.items()):
        left, top = left_margin + index % across * cell_width, MARGIN + index // across * band_height
        draw.text((left, top), _fitting(caption, cell_width - MARGIN), INK, _font())
        for row, name in enumerate(rows):
            y = top + LABEL_HEIGHT + row * cell_height
            if index % across == 0:
                draw.text((MARGIN // 2, y), _fitting(name, left_margin - MARGIN), INK, _font())
            for position, frame in enumerate(frames):
                picture = Image.fromarray(clips[name][frame]).resize(
                    (width * zoom, height * zoom), Image.Resampling.NEAREST
                )
                image.paste(picture, (left + position * width * zoom, y))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=False)
    return data.getvalue()
