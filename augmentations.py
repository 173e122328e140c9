"""Image augmentations: DrQ's random shift and the ones that its paper compares it with."""

from __future__ import annotations

from collections.abc import Callable

import torch

Augmentation = Callable[[torch.Tensor], torch.Tensor]


class RandomShift:
    """Pad by replication, then crop at a random offset per image, the same for all channels (DrQ, section 3.1).

    Takes and returns uint8 images (N, C, H, W); the result is channels_last in memory. Output pixel (i, j) is input
    pixel (i + dy - pad, j + dx - pad), with both coordinates clamped to the image. Pad and crop are a single gather of
    whole pixels without interpolation. The offsets are drawn from `generator`, which is on the device of the images.
    """

    def __init__(self, pad: int, generator: torch.Generator) -> None:
        self.pad, self._generator = pad, generator

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        offsets = torch.randint(2 * self.pad + 1, (len(images), 2), generator=self._generator, device=images.device)
        return self.crop(images, offsets)

    def crop(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the crops at the given offsets: int64 (N, 2) with rows (dy, dx), each from 0 to 2 * pad."""
        n, channels, height, width = images.shape
        rows, columns = (
            (offsets[:, axis, None] - self.pad + torch.arange(length, device=images.device)).clamp(0, length - 1)
            for axis, length in enumerate((height, width))
        )
        image = torch.arange(n, device=images.device)[:, None, None]
        pixel = (image * height + rows[:, :, None]) * width + columns[:, None, :]  # (N, H, W)
        pixels = images.permute(0, 2, 3, 1).reshape(n * height * width, channels)
        return pixels.index_select(0, pixel.flatten()).view(n, height, width, channels).permute(0, 3, 1, 2)


def make_augmentation(name: str, pad: int, generator: torch.Generator) -> Augmentation:
    """Return the augmentation that --augmentation calls `name`: a function of images (N, C, H, W), values 0 to 255.

    "shift" draws from `generator`, "none" draws nothing. The others are the paper's alternatives (appendix E) with its
    settings, by kornia except for "intensity"; they return float32 and draw from torch's global generator. Raises
    KeyError for another name.
    """
    if name == "shift":
        return RandomShift(pad, generator)
    if name == "none":
        return lambda images: images
    from kornia import augmentation as K  # slow to import and needed only here

    augment: Augmentation = {
        "cutout": K.RandomErasing(p=0.5),
        "hflip": K.RandomHorizontalFlip(p=0.1),
        "vflip": K.RandomVerticalFlip(p=0.1),
        "rotation": K.RandomRotation(degrees=5.0, p=1.0),  # p=1 was kornia's default when the paper was written
        "intensity": _scale_intensity,
    }[name]
    return lambda images: augment(images.float())


def _scale_intensity(images: torch.Tensor) -> torch.Tensor:
    """Scale each image by 1 + 0.05 * noise, with standard normal noise clamped to [-2, 2]."""
    noise = torch.randn(len(images), 1, 1, 1, device=images.device).clamp(-2.0, 2.0)
    return images * (1.0 + 0.05 * noise)
