"""Small pictures of unlabeled cases with their prediction drawn in, from nnU-Net's preprocessed images.

Preprocessed images lie on the grid of the predictions, are there wherever scores are, and show what the network saw.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_semi import raw
from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.filtering.table import PREDICTIONS, work_folder
from nnunet_semi.unlabeled.index import UnlabeledIndex

COLOURS = np.array(  # of the labels, from 1 on; Okabe and Ito's, which colour-blind people can tell apart
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)],
    dtype=np.uint8,
)
RED_GREEN_BLUE = (["r", "g", "b"], ["red", "green", "blue"])

Pixels = NDArray[np.uint8]  # height × width × 3


@dataclass(frozen=True)
class ImageSource:
    """Where the pictures of a dataset's unlabeled cases come from.

    Attributes:
        images: folder of preprocessed cases.
        predictions: folder of label maps on the same grid; None where there are none.
        aspect: height of a pixel, where its width is 1.
        colour: whether the three channels are red, green and blue; otherwise the first channel is shown.
    """

    images: Path
    predictions: Path | None
    aspect: float = 1.0
    colour: bool = False

    @classmethod
    def of_table(cls, dataset: str, table: Path, provenance: dict[str, Any], plans: str) -> ImageSource:
        """The images that were scored, and their predictions; those of the plans alone where no provenance is known."""
        if not provenance:
            return cls.of_dataset(dataset, plans)
        content, dataset_json = raw.load_plans(dataset, provenance["plans"])
        configuration = raw.resolve_configuration(content, provenance["configuration"])
        predictions = work_folder(table) / PREDICTIONS
        return cls._make(dataset, configuration, dataset_json, predictions if predictions.is_dir() else None)

    @classmethod
    def of_dataset(cls, dataset: str, plans: str) -> ImageSource:
        """The unlabeled images that were preprocessed last, by any configuration of the plans.

        Raises:
            EnvironmentNotReady: none are.
        """
        content, dataset_json = raw.load_plans(dataset, plans)
        found: list[tuple[int, int, dict[str, Any]]] = []
        for name in content.get("configurations", {}):
            configuration = raw.resolve_configuration(content, name)
            index = _folder(dataset, configuration).with_suffix(".jsonl")
            if index.is_file():
                found.append((index.stat().st_mtime_ns, len(found), configuration))
        if not found:
            raise EnvironmentNotReady(
                f"no unlabeled cases of {dataset} are preprocessed with {plans}; run `nnunet_semi preprocess` first"
            )
        return cls._make(dataset, max(found)[2], dataset_json, None)

    @classmethod
    def _make(
        cls, dataset: str, configuration: dict[str, Any], dataset_json: dict[str, Any], predictions: Path | None
    ) -> ImageSource:
        height, width = configuration["spacing"][-2:]
        names = [name.lower() for name in raw.channel_names(dataset_json)]
        return cls(_folder(dataset, configuration), predictions, height / width, names in RED_GREEN_BLUE)

    def unlabeled(self) -> list[str]:
        """All unlabeled cases, sorted: those in imagesUn now; where raw images are elsewhere, those preprocessed.

        Raises:
            UserError: files in imagesUn are misnamed, or a case is labeled as well.
        """
        dataset = self.images.parent
        with suppress(EnvironmentNotReady):
            raw_dataset = raw.dataset_folder(raw.RAW, dataset.name)
            return list(raw.unlabeled_cases(raw_dataset, raw.load_json(dataset / "dataset.json")))
        return sorted(path.stem for path in self.images.glob("*.b2nd") if not path.stem.endswith("_seg"))

    def cases(self) -> list[str]:
        """The unlabeled cases that are preprocessed, sorted.

        Raises:
            EnvironmentNotReady: there is none.
            UserError: files in imagesUn are misnamed, or a case is labeled as well.
        """
        found = [case for case in self.unlabeled() if (self.images / f"{case}.b2nd").is_file()]
        if not found:
            raise EnvironmentNotReady(f"{self.images} holds no case; run `nnunet_semi preprocess` first")
        return found

    def bad(self) -> dict[str, str]:
        """Case → reason of the images that preprocessing could not use, and that will get no score."""
        return UnlabeledIndex.load(self.images.with_suffix(".jsonl")).bad

    def picture(self, case: str, size: int) -> Pixels:
        """A slice of a case, no larger than `size` in both directions, with the outlines of what is predicted.

        The slice is the one with most foreground; the middle one where nothing is predicted.

        Raises:
            EnvironmentNotReady: the image is missing or unreadable, or does not fit the prediction.
        """
        try:
            image, prediction = self._slice(case)
        except (OSError, RuntimeError, ValueError) as error:
            raise EnvironmentNotReady(
                f"{self.images / case}.b2nd or the prediction of it cannot be read ({type(error).__name__}: {error}); "
                "run `nnunet_semi preprocess` and `nnunet_semi score` again"
            ) from error
        height, width = image.shape[1] * self.aspect, float(image.shape[2])
        scale = size / max(height, width)
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.array(Image.fromarray(_grey_levels(image)).resize(shape, Image.Resampling.BILINEAR))
        if prediction is not None:
            outline(pixels, np.array(Image.fromarray(prediction).resize(shape, Image.Resampling.NEAREST)))
        return pixels

    def _slice(self, case: str) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
        """Channels × height × width of one slice, and its prediction."""
        import blosc2

        blosc2.set_nthreads(1)
        image = blosc2.open(str(self.images / f"{case}.b2nd"), mode="r")
        path = None if self.predictions is None else self.predictions / f"{case}.b2nd"
        number, prediction = image.shape[1] // 2, None
        if path is not None and path.is_file():
            volume = blosc2.open(str(path), mode="r")[:]
            if volume.shape != image.shape[1:]:
                raise ValueError(f"shapes {image.shape[1:]} and {volume.shape}")
            areas = np.count_nonzero(volume.reshape(len(volume), -1), axis=1)
            number = int(areas.argmax()) if areas.any() else number
            prediction = np.minimum(volume[number], 255).astype(np.uint8)
        channels = slice(0, 3) if self.colour and image.shape[0] == 3 else slice(0, 1)
        return image[channels, number], prediction


def _folder(dataset: str, configuration: dict[str, Any]) -> Path:
    return raw.dataset_folder(raw.PREPROCESSED, dataset) / f"{configuration['data_identifier']}_unlabeled"


def _grey_levels(image: NDArray[np.float32]) -> Pixels:
    """Height × width × 3 in 8 bits, from the first to the last percentile; even grey where all values are the same."""
    low, high = np.percentile(image, (1, 99))
    scaled = np.full_like(image, 0.5) if high <= low else np.clip((image - low) / (high - low), 0, 1)
    pixels = (255 * scaled).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1))


def outline(pixels: Pixels, labels: NDArray[np.uint8]) -> None:
    """Draws the border pixels of every label into a picture of the same height and width."""
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = (labels > 0) & np.logical_or.reduce([labels != neighbour for neighbour in neighbours])
    pixels[border] = COLOURS[(labels[border] - 1) % len(COLOURS)]
