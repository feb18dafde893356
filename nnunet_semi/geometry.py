"""The grid of an image in space: from voxels to millimetres and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_semi.errors import UserError

CLOSE_SPACING = 1e-3  # share by which spacings of the same image may differ, as files round them
CLOSE_ORIGIN = 0.1  # voxels
CLOSE_DIRECTION = 1e-3


@dataclass(frozen=True)
class Geometry:
    """The grid of an image, in the order x, y(, z) of SimpleITK and of the files.

    world = origin + direction · (spacing · voxel), where a voxel's centre has whole numbers; for NIfTI, too, this is
    the patient's left, posterior and superior (LPS), as SimpleITK has it.

    Attributes:
        size: in voxels.
        spacing: in mm.
        origin: world coordinates of the centre of the first voxel, in mm.
        direction: the axes as columns, row by row; the identity where a file does not say.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, size: Any, spacing: Any, origin: Any = None, direction: Any = None) -> Geometry:
        """From any sequences; origin 0 and no rotation where they are None."""
        size = tuple(map(int, size))
        dim = len(size)
        origin = (0.0,) * dim if origin is None else origin
        direction = np.eye(dim).ravel() if direction is None else direction
        return cls(size, *(tuple(float(value) for value in values) for values in (spacing, origin, direction)))

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any], transpose_forward: Any) -> Geometry:
        """Of a case that nnU-Net read, from what it keeps in the case's .pkl.

        A 2D image, which nnU-Net holds as one slice, gets two axes. Formats that know no more than a spacing, such as
        PNG, get origin 0 and no rotation.

        Raises:
            UserError: nnU-Net read it with nibabel, which may turn axes and keeps no origin and direction as above.
        """
        if "nibabel_stuff" in properties:
            raise UserError(
                "nnU-Net read the image with nibabel, whose axes are not those of landmark files; set "
                '"overwrite_image_reader_writer": "SimpleITKIO" in dataset.json and run `nnUNetv2_plan_and_preprocess` '
                "again"
            )
        transposed = properties["shape_before_cropping"]
        shape = [int(transposed[list(transpose_forward).index(axis)]) for axis in range(3)]
        itk = properties.get("sitk_stuff")
        if itk is not None:
            dim = len(itk["spacing"])
            return cls.of(shape[::-1][:dim], itk["spacing"], itk["origin"], itk["direction"])
        spacing = properties["spacing"][::-1]
        dim = 2 if shape[0] == 1 else 3
        return cls.of(shape[::-1][:dim], spacing[:dim])

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size in array order."""
        return self.size[::-1]

    def difference(self, other: Geometry) -> str:
        """In words how this grid differs from another, "" if voxels and distances in one are those in the other.

        Training and evaluation both ask this, so that what is trained on can be scored.
        """
        if self.size != other.size:
            return f"size {self.size} against {other.size}"
        limits = {
            "spacing": CLOSE_SPACING * np.array(self.spacing),
            "origin": CLOSE_ORIGIN * min(self.spacing),
            "direction": CLOSE_DIRECTION,
        }
        for name, limit in limits.items():
            one, two = getattr(self, name), getattr(other, name)
            if not (np.abs(np.subtract(one, two)) <= limit).all():
                return f"{name} {one} against {two}"
        return ""

    def _matrix(self) -> np.ndarray:
        return np.array(self.direction).reshape(self.dim, self.dim) * np.array(self.spacing)

    def world(self, voxel: np.ndarray) -> np.ndarray:
        """World coordinates (L, dim), in mm and in the order x, y(, z), of voxels (L, dim) in array order."""
        return np.asarray(voxel, float)[:, ::-1] @ self._matrix().T + np.array(self.origin)

    def voxel(self, world: np.ndarray) -> np.ndarray:
        """Voxels (L, dim) in array order of world coordinates (L, dim) in the order x, y(, z)."""
        return np.linalg.solve(self._matrix(), (np.asarray(world, float) - np.array(self.origin)).T).T[:, ::-1]
