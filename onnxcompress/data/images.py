"""Folders of images, made into a model's input by a stated preprocessing."""

import csv
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxcompress.data.inputs import Feeds, Input, fits
from onnxcompress.errors import UsageError, unknown

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that Pillow hands to another program
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Preprocess:
    """From an image file to numbers: convert, resize, crop, ``(pixel / scale - mean) / std``, transpose.

    The image is converted to the channel `order` (RGB, BGR or GRAY), resized (bilinear) until its shorter
    side is `resize` pixels (0: not at all), cut to the `crop` (height, width) at its centre, rounded
    towards the upper left. `mean` and `std` are one number or one a channel in that order. The `layout` is
    NCHW or NHWC. What is None is taken from the model's input; the default `resize` is as large as the crop
    times `zoom`.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | None = None
    crop: tuple[int, int] | None = None
    layout: str | None = None
    order: str | None = None
    zoom: float = 1.0

    def fitted(self, wanted: Input) -> "Preprocess":
        """Return this with what was left open taken from the input `wanted`; UsageError where it can't be."""
        if wanted.dims is None or len(wanted.dims) not in (3, 4):
            raise UsageError(
                f"preprocess: input {wanted.name} is {wanted.expected}, expected an image of 3 or 4 axes"
            )
        body = wanted.dims[-3:]
        layouts = [name for name, place in (("NCHW", 0), ("NHWC", 2)) if body[place] in (1, 3)]
        if self.layout is None and len(layouts) != 1:
            raise UsageError(
                f"preprocess: the layout of {wanted.expected} is not clear, expected layout=NCHW or NHWC"
            )
        layout = self.layout or layouts[0]
        channels, *sides = body if layout == "NCHW" else (body[2], *body[:2])
        order = self.order or ("GRAY" if channels == 1 else "RGB")
        crop = self.crop or tuple(side for side in sides if isinstance(side, int))
        if len(crop) != 2:
            raise UsageError(
                f"preprocess: input {wanted.name} is {wanted.expected}, expected crop= to say its size"
            )
        depth = 1 if order == "GRAY" else 3
        if not {len(self.mean), len(self.std)} <= {1, depth}:
            said = f"{len(self.mean)} means and {len(self.std)} deviations"
            raise UsageError(f"preprocess: {said}, expected 1 or {depth} for {order}")
        shape = (depth, *crop) if layout == "NCHW" else (*crop, depth)
        if not fits(body, shape):
            raise UsageError(f"preprocess: makes images {list(shape)}, expected {wanted.expected}")
        return replace(self, layout=layout, crop=crop, order=order)

    def read(self, path: Path) -> np.ndarray:
        """Return the image in `path` as [C, H, W] or [H, W, C], float32; uint8 where pixels stay as they are.

        Only after :meth:`fitted`. UsageError where it is no image or smaller than the crop.
        """
        pillow = _pillow()
        assert self.crop is not None
        bombs = (pillow.DecompressionBombError, pillow.DecompressionBombWarning)
        try:
            with _strict(pillow), pillow.open(path, formats=FORMATS) as opened:
                image = opened.convert("L" if self.order == "GRAY" else "RGB")
            width, height = self._resized(*image.size)
            if width * height > pillow.MAX_IMAGE_PIXELS:
                raise UsageError(
                    f"{path.name}: would be {width}x{height} pixels after resizing, expected fewer"
                )
            if (width, height) != image.size:
                image = image.resize((width, height), pillow.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, *bombs) as error:
            raise UsageError(f"{path.name}: is not a readable image: {error}") from error
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        if min(top, left) < 0:
            size = f"{self.crop[1]}x{self.crop[0]}"
            raise UsageError(f"{path.name}: image is {width}x{height}, smaller than the crop {size}")
        pixels = np.atleast_3d(np.asarray(image))[top : top + self.crop[0], left : left + self.crop[1]]
        if self.order == "BGR":
            pixels = pixels[..., ::-1]
        if (self.scale, self.mean, self.std) != (1.0, (0.0,), (1.0,)):
            pixels = pixels.astype(np.float32) / np.float32(self.scale)
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            pixels = (pixels - mean) / std
        return pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return what size an image of this size is resized to; the longer side is rounded down."""
        assert self.crop is not None
        shorter = min(width, height)
        target = self.resize
        if target is None:
            cover = max(self.crop[0] / height, self.crop[1] / width) * shorter
            target = int(np.ceil(round(cover * self.zoom, 6)))
        if target == 0:
            return width, height
        return target * width // shorter, target * height // shorter


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's red, green, blue (torchvision)
PRESETS = {
    "imagenet": Preprocess(255.0, MEAN, STD, zoom=256 / 224),
    "imagenet-tf": Preprocess(127.5, (1.0,), zoom=256 / 224),
    "caffe": Preprocess(mean=(103.939, 116.779, 123.68), order="BGR", zoom=256 / 224),
    "unit": Preprocess(255.0),
    "raw": Preprocess(),
}


def parse_preprocess(text: str) -> Preprocess:
    """Return what `text` says: a preset and what differs, ``imagenet(crop=192, mean=[0.5, 0.5, 0.5])``.

    UsageError for an unknown preset or setting, or a value that does not fit.
    """
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\)\s*)?", text)
    if match is None:
        raise UsageError(f"{text}: is not a preprocessing, expected such as imagenet(resize=256, crop=224)")
    name, body = match[1], match[2] or ""
    if name not in PRESETS:
        raise UsageError(unknown("preprocessing", name, PRESETS))
    settings: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", body) if body.strip() else []:
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in _READ:
            raise UsageError(f"{name}: {unknown('setting', key, _READ)}")
        read, wanted = _READ[key]
        try:
            settings[key] = read(value)
        except ValueError as error:
            raise UsageError(f"{name}: {key} is {value!r}, expected {wanted}") from error
    return replace(PRESETS[name], **settings)


def _numbers(text: str) -> tuple[float, ...]:
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    numbers = tuple(float(part) for part in inside.split(","))
    if not np.isfinite(numbers).all():
        raise ValueError
    return numbers


def _divisors(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if min(numbers) <= 0:
        raise ValueError
    return numbers


def _scale(text: str) -> float:
    (number,) = _divisors(text)
    return number


def _side(text: str) -> int:
    if not 0 <= int(text) < 100_000:
        raise ValueError
    return int(text)


def _crop(text: str) -> tuple[int, int]:
    sides = [_side(part) for part in text.strip("[]").split(",")]
    height, width = sides * 2 if len(sides) == 1 else sides
    if min(height, width) == 0:
        raise ValueError
    return height, width


def _word(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.upper() not in words:
            raise ValueError
        return text.upper()

    return read


_READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "resize": (_side, "the shorter side in pixels, 0 for no resizing"),
    "crop": (_crop, "a side in pixels or [height, width]"),
    "scale": (_scale, "a number above 0"),
    "mean": (_numbers, "a number or [a number a channel]"),
    "std": (_divisors, "a number above 0 or [one a channel]"),
    "layout": (_word("NCHW", "NHWC"), "NCHW or NHWC"),
    "order": (_word("RGB", "BGR", "GRAY"), "RGB, BGR or GRAY"),
}


@dataclass(frozen=True)
class Images:
    """Image files as samples of a model's only input."""

    files: Sequence[Path]
    labels: np.ndarray | None
    preprocess: Preprocess
    wanted: Input
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.files)

    @property
    def stacked(self) -> frozenset[str]:
        """The input, unless it has no batch axis."""
        return frozenset([self.wanted.name] if len(self.wanted.dims or ()) == 4 else [])

    @property
    def batch(self) -> int | None:
        """How many images a feed must have, None where any number will do."""
        first = self.wanted.dims[0] if self.wanted.dims and self.stacked else 1
        return first if isinstance(first, int) else None

    def read(self, wanted: Sequence[int]) -> Iterator[Feeds]:
        """Yield the images of the ascending numbers `wanted`, in the order of their files' names."""
        for each in wanted:
            yield {self.wanted.name: self.preprocess.read(self.files[each])}


def open_images(folder: Path, preprocess: str | None, inputs: Mapping[str, Input]) -> Images:
    """Return the images in `folder`, sorted by name; no image is read yet.

    Labels are those of ``labels.csv`` (columns file, label) in the folder, or the place of an image's
    folder among the sorted folders in `folder` where images are only there. UsageError where there is no
    image, no preprocessing is stated, an image has no label, or Pillow is not installed.
    """
    files, labels = image_files(folder), None
    if files and (folder / "labels.csv").exists():
        labels = _read_labels(folder / "labels.csv", files)
    if not files:
        classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        found = [image_files(each) for each in classes]
        files = [file for each in found for file in each]
        labels = np.repeat(np.arange(len(found)), [len(each) for each in found])
    if not files:
        raise UsageError(
            f"{folder.name}: holds no data, expected .npz, .npy, images or test_data_set_* folders"
        )
    if preprocess is None:
        raise UsageError(f"{folder.name}: images need a preprocessing, one of {', '.join(PRESETS)}")
    if len(inputs) != 1:
        raise UsageError(
            f"{folder.name}: images are one input, expected arrays by name for {', '.join(inputs)}"
        )
    (wanted,) = inputs.values()
    fitted = parse_preprocess(preprocess).fitted(wanted)
    _pillow()
    return Images(files, labels, fitted, wanted)


def image_files(folder: Path) -> list[Path]:
    """Return the images in `folder` itself, sorted by name; the end of its name makes a file an image."""
    return sorted(
        each for each in folder.iterdir() if each.suffix.lower() in ENDINGS and not each.name.startswith(".")
    )


def _read_labels(path: Path, files: Sequence[Path]) -> np.ndarray:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            labels = {row["file"]: int(row["label"]) for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{path.name}: is not a table with the columns file and label (an integer)"
        ) from error
    for file in files:
        if file.name not in labels:
            raise UsageError(f"{path.name}: {file.name} has no label, expected one for each image")
    return np.array([labels[file.name] for file in files], np.int64)


@contextmanager
def _strict(pillow: ModuleType) -> Iterator[None]:
    """Make an image far too large an error, and let pass what Pillow warns of besides: damaged metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        yield


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "images: Pillow is not installed, expected pip install onnxcompress[images]"
        ) from error
    return Image
