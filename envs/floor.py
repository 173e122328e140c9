"""A floor that shows where a body is.

The suite's floor is a checkerboard that repeats every two meters: pictures of a body at different places look the same
to a camera that follows it. Work on locomotion from pixels therefore colors the floor by position (METRA, Park et al.,
ICLR 2024, https://arxiv.org/abs/2310.08887).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

LONGEST_PERIOD = 40.0  # meters after which the colors repeat, unless the floor is smaller


def color_floor(model: Any) -> None:
    """Replace the floor's texture in dm_control's model: the hue changes along x, the saturation along y.

    A darker checkerboard stays, as it shows the body's speed. Must be called before the first picture is drawn.
    """
    planes = np.flatnonzero(model.geom_type == 0)
    material = model.geom_matid[planes[0]]
    texture = model.mat_texid[material].max()
    period = min(2 * model.geom_size[planes[0]][:2].max(), LONGEST_PERIOD)
    height, width, start = model.tex_height[texture], model.tex_width[texture], model.tex_adr[texture]
    pixels = floor_texture(height, width, period)
    model.tex_data[start : start + pixels.size] = pixels.ravel()
    model.mat_texrepeat[material] = 2 / period  # MuJoCo repeats it every 2 / texrepeat meters


def floor_texture(height: int, width: int, period: float) -> np.ndarray:
    """Return a seamless texture, uint8 RGB (height, width, 3), for a square of `period` meters."""
    along_x, along_y = np.arange(width) / width, np.arange(height) / height
    hsv = np.empty((height, width, 3), np.float32)
    hsv[..., 0] = 360 * along_x
    hsv[..., 1] = 0.65 + 0.35 * np.cos(2 * np.pi * along_y)[:, None]
    fields = np.floor(along_y * period)[:, None] + np.floor(along_x * period)
    hsv[..., 2] = np.where(fields % 2, 0.9, 0.65)
    return (255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).round().astype(np.uint8)
