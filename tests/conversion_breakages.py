"""Every kind of broken source that the converters are tested with: how to break it, and what the message must say."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conversion_breaking import (
    CT,
    FLARE,
    STAS,
    blacken,
    cut,
    edit_points,
    first_point,
    into_subfolder,
    link_out,
    outlined,
    picture_with,
    point_at_the_data,
    skewed,
    volume_with,
    without_origin,
)
from conversion_sources import (
    COLUMNS,
    ROWS,
    blob,
    body,
    make_aicup,
    make_flare,
    make_fugc,
    make_stack,
    random_image,
    write_png,
)

FUGC = "train/labeled_data"
UNLABELED_CT = "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz"
ORGANS = f"{FLARE}/labels/FLARE22_Tr_0001.nii.gz"


def make_folder(root: Path) -> Path:
    """Grey PNG with masks, and unlabeled ones."""
    for number in range(3):
        write_png(root / "images" / f"a{number}.png", random_image(number, ROWS, COLUMNS))
        write_png(root / "labels" / f"a{number}.png", blob((ROWS, COLUMNS), 2))
        write_png(root / "unlabeled" / f"u{number}.png", random_image(9 + number, ROWS, COLUMNS))
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "fugc2025": make_fugc,
    "flare22": make_flare,
    "aicup-stas": make_aicup,
    "cl-detection2023": make_stack,
    "folder": make_folder,
}


IMAGE, MASK = f"{FUGC}/images/0001.png", f"{FUGC}/labels/0001.png"
WIDE = np.zeros((ROWS, COLUMNS + 1), np.uint8)
NAN = np.full((6, 8, 7), np.nan, np.float32)

# challenge, what is broken → how, and what the message has to say
BROKEN: dict[tuple[str, str], tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    ("fugc2025", "a missing label"): (lambda r: (r / MASK).unlink(), (IMAGE, "no label for it", "labels/0001")),
    ("fugc2025", "a missing image"): (lambda r: (r / IMAGE).unlink(), (MASK, "no image for it", "images/0001")),
    ("fugc2025", "a label of another shape"): (picture_with(MASK, WIDE), (MASK, "(12, 17)", "(12, 16) as its image")),
    ("fugc2025", "a label out of range"): (picture_with(MASK, blob((ROWS, COLUMNS), 3)), (MASK, "labels 3", "0 to 2")),
    ("fugc2025", "an image that is none"): (lambda r: (r / IMAGE).write_bytes(b"GIF89a"), (IMAGE, "cannot be read")),
    ("fugc2025", "half an image"): (lambda r: cut(r / IMAGE), (IMAGE, "cannot be read", "an intact PNG")),
    ("fugc2025", "an empty file"): (lambda r: (r / IMAGE).write_bytes(b""), (IMAGE, "an empty file")),
    ("fugc2025", "an image with transparency"): (
        picture_with(IMAGE, random_image(0, ROWS, COLUMNS, 4)),
        (IMAGE, "a 4-channel picture of mode RGBA", "without transparency"),
    ),
    ("fugc2025", "a grey image"): (
        picture_with(IMAGE, random_image(0, ROWS, COLUMNS)),
        (IMAGE, "1 channel (grey)", "3 channels (RGB)"),
    ),
    ("fugc2025", "a coloured label"): (
        picture_with(MASK, random_image(0, ROWS, COLUMNS, 3)),
        (MASK, "a picture in colour", "a number per class"),
    ),
    ("fugc2025", "a label with transparency"): (
        picture_with(MASK, random_image(0, ROWS, COLUMNS, 4)),
        (MASK, "mode RGBA", "a number per class"),
    ),
    ("fugc2025", "no training images"): (
        lambda r: [path.unlink() for path in (r / FUGC / "images").iterdir()],
        (f"{FUGC}/images", "no such file in it", "no image for it"),
    ),
    ("fugc2025", "another layout"): (
        lambda r: (r / "train").rename(r / "training"),
        ("training", "expected train/labeled_data/images"),
    ),
    ("fugc2025", "an empty folder"): (lambda r: (r / "train").rename(r.parent / "away"), ("an empty folder",)),
    ("fugc2025", "a link out of the source"): (
        lambda r: link_out(r, IMAGE),
        (IMAGE, "a link that leads out of the source", "outside"),
    ),
    ("fugc2025", "a folder that is a link out of the source"): (
        lambda r: link_out(r, f"{FUGC}/labels"),
        (f"{FUGC}/labels", "a link that leads out of the source"),
    ),
    ("fugc2025", "a link that leads nowhere"): (
        lambda r: (r / FUGC / "images/0009.png").symlink_to(r / "nowhere.png"),
        ("0009.png", "a link that leads nowhere"),
    ),
    ("fugc2025", "a pipe in the place of an image"): (
        lambda r: os.mkfifo(r / FUGC / "images/0009.png"),
        ("0009.png", "neither a file nor a folder"),
    ),
    ("fugc2025", "names that become the same"): (
        lambda r: [
            write_png(r / f"train/unlabeled_data/images/{stem}.png", random_image(0, ROWS, COLUMNS, 3))
            for stem in ("a b", "a_b")
        ],
        ("a_b.png", "though", "a b.png", "rename one of the two"),
    ),
    ("fugc2025", "a name without letters"): (
        picture_with("train/unlabeled_data/images/牛.png", random_image(0, ROWS, COLUMNS, 3)),
        ("牛.png", "a name without ASCII letters or digits"),
    ),
    ("fugc2025", "unlabeled images in another folder"): (
        lambda r: (r / "train/unlabeled_data/images").rename(r / "train/unlabeled_data/imgs"),
        ("train/unlabeled_data/images", "No such file or directory"),
    ),
    ("flare22", "a missing label"): (lambda r: (r / ORGANS).unlink(), (CT, "no label for it")),
    ("flare22", "a label of another size"): (
        volume_with(ORGANS, blob((6, 8, 8), 13)),
        (ORGANS, "the shape (6, 8, 8)", "(6, 8, 7) as its image"),
    ),
    ("flare22", "a label of another spacing"): (
        volume_with(ORGANS, blob((6, 8, 7), 13), spacing=(1, 1, 2)),
        (ORGANS, "the spacing (1.0, 1.0, 2.0)"),
    ),
    ("flare22", "a label that is turned"): (
        volume_with(ORGANS, blob((6, 8, 7), 13), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        (ORGANS, "the direction (-1.0"),
    ),
    ("flare22", "a label elsewhere"): (
        volume_with(ORGANS, blob((6, 8, 7), 13), origin=(0, 0, 50)),
        (ORGANS, "the origin (0.0, 0.0, 50.0)"),
    ),
    ("flare22", "a label out of range"): (
        volume_with(ORGANS, blob((6, 8, 7), 14)),
        (ORGANS, "the labels 14", "0 to 13"),
    ),
    ("flare22", "a negative label"): (
        volume_with(ORGANS, blob((6, 8, 7), 13).astype(np.int16) - 1),
        (ORGANS, "the labels -1", "whole numbers from 0 on"),
    ),
    ("flare22", "a label with fractions"): (
        volume_with(ORGANS, blob((6, 8, 7), 13) / 2),
        (ORGANS, "the labels 0.5, 1.5, 2.5 and 4 more", "whole numbers"),
    ),
    ("flare22", "NaN in an image"): (volume_with(CT, NAN), (CT, "NaN or infinite")),
    ("flare22", "NaN in the header of an unlabeled image"): (
        without_origin(UNLABELED_CT),
        (UNLABELED_CT, "a header with NaN or infinity in its spacing, origin or direction", "write the header again"),
    ),
    ("flare22", "NaN in a label"): (volume_with(ORGANS, NAN), (ORGANS, "NaN or infinite")),
    ("flare22", "half a volume"): (lambda r: cut(r / CT), (CT, "a damaged file")),
    ("flare22", "a volume with a flipped bit"): (
        lambda r: (r / CT).write_bytes((r / CT).read_bytes()[:-5] + b"\0" + (r / CT).read_bytes()[-4:]),
        (CT, "a damaged file (CRC check failed"),
    ),
    ("flare22", "fewer voxels than the header says"): (
        lambda r: (r / CT).write_bytes(gzip.compress(gzip.decompress((r / CT).read_bytes())[:-50])),
        (CT, "974 of 1024 bytes", "a complete volume"),
    ),
    ("flare22", "text in the place of a volume"): (lambda r: (r / CT).write_bytes(b"text"), (CT, "a damaged file")),
    ("flare22", "four dimensions"): (
        volume_with(CT, np.zeros((2, 6, 8, 7), np.int16).transpose(1, 2, 3, 0)),
        (CT, "2 values per voxel"),
    ),
    ("flare22", "axes that are not at right angles"): (skewed, (CT, "cannot be read")),
    ("flare22", "unlabeled images a folder too deep"): (
        into_subfolder("Training/FLARE22_UnlabeledCase1-1000"),
        ("FLARE22_UnlabeledCase1-1000", "but the folders sub", "move them up into it"),
    ),
    ("flare22", "another layout"): (lambda r: (r / FLARE).rename(r / "Training/Cases"), ("labeled_image",)),
    ("aicup-stas", "a missing annotation"): (
        lambda r: (r / STAS / "Train_Annotations/00000001.json").unlink(),
        ("Train_Images/00000001.jpg", "no label for it"),
    ),
    ("aicup-stas", "no JSON"): (
        lambda r: (r / STAS / "Train_Annotations/00000001.json").write_text("{"),
        ("Train_Annotations/00000001.json", "no JSON"),
    ),
    ("aicup-stas", "outlines in an image of another size"): (
        outlined(imageHeight=99),
        ("00000000.json", "outlines in an image of (16, 99) pixels", "(16, 12) as its image"),
    ),
    ("aicup-stas", "an unknown shape"): (
        outlined({"points": [[1, 1]], "shape_type": "blob"}),
        ("00000000.json", "of the type 'blob'", "polygon, linestrip, rectangle"),
    ),
    ("aicup-stas", "two images of one name"): (
        lambda r: write_png(r / "more/Public_00000000.jpg", random_image(1, ROWS, COLUMNS, 3)),
        ("Public_00000000.jpg", "rename one of the two"),
    ),
    ("aicup-stas", "another layout"): (lambda r: (r / STAS / "Train_Images").rename(r / "x"), ("Train_Images and",)),
    ("cl-detection2023", "no stack"): (lambda r: (r / "train_stack.mha").unlink(), ("one stack (train_stack.mha)",)),
    ("cl-detection2023", "two stacks"): (
        lambda r: (r / "train_stack2.mha").write_bytes(b"x"),
        ("several candidates (train_stack.mha, train_stack2.mha)",),
    ),
    ("cl-detection2023", "a stack that is none"): (
        lambda r: (r / "train_stack.mha").write_bytes(b"x" * 100),
        ("train_stack.mha", "no header of an MHA file"),
    ),
    ("cl-detection2023", "half a stack"): (lambda r: cut(r / "train_stack.mha"), ("train_stack.mha", "bytes of data")),
    ("cl-detection2023", "a header that points elsewhere"): (
        point_at_the_data,
        ("train_stack.mha", "points to other files (../../secret.raw)"),
    ),
    ("cl-detection2023", "a single picture"): (
        volume_with("train_stack.mha", random_image(0, ROWS, COLUMNS)),
        ("train_stack.mha", "in 2 dimensions (16, 12)", "a stack of pictures"),
    ),
    ("cl-detection2023", "an image of zeros"): (blacken, ("train_stack.mha", "image 8, which is zero everywhere")),
    ("cl-detection2023", "no list of points"): (
        lambda r: (r / "train-gt.json").write_text("[]"),
        ("train-gt.json", "without a list `points`"),
    ),
    ("cl-detection2023", "an unknown landmark"): (first_point(name=39), ("point 1 with the name '39', not 1 to 38",)),
    ("cl-detection2023", "a landmark twice"): (
        edit_points(lambda points: points.append(points[0])),
        ("image 1 with 1 more than once", "each name once"),
    ),
    ("cl-detection2023", "a point outside"): (first_point(point=[-9, 1, 1]), ("position (-9, 1) outside of 19 × 14",)),
    ("cl-detection2023", "a point that is undefined"): (
        first_point(point=[float("nan"), 1, 1]),
        ("position (nan, 1) outside",),
    ),
    ("cl-detection2023", "an image that is not there"): (first_point(point=[1, 1, 9]), ("the image 9 of 8",)),
    ("cl-detection2023", "a scale of zero"): (first_point(scale="0"), ("the scale '0'",)),
    ("cl-detection2023", "no scale"): (edit_points(lambda points: points[0].pop("scale")), ("without 'scale'",)),
    ("cl-detection2023", "two scales"): (first_point(scale="0.2"), ("image 1 with the scales 0.1, 0.2",)),
    ("cl-detection2023", "an image without points"): (
        edit_points(lambda points: points.__delitem__(slice(0, 38))),
        ("no points in image 1",),
    ),
    ("folder", "a missing label"): (
        lambda r: (r / "labels/a0.png").unlink(),
        ("images/a0.png", "no label for it", "--unlabeled"),
    ),
    ("folder", "a case that is labeled and unlabeled"): (
        lambda r: (r / "unlabeled/u0.png").rename(r / "unlabeled/a0.png"),
        ("unlabeled/a0.png", "images/a0.png", "rename one of the two"),
    ),
    ("folder", "names that differ in case only"): (
        lambda r: (r / "unlabeled/u0.png").rename(r / "unlabeled/U1.png"),
        ("rename one of the two",),
    ),
    ("folder", "two files of one name"): (
        lambda r: write_png(r / "unlabeled/u0.bmp", random_image(1, ROWS, COLUMNS)),
        ("u0", "the same name as", "one file of each name"),
    ),
    ("folder", "several formats"): (
        volume_with("unlabeled/v.nii.gz", body(0)),
        ("images of several formats (a0.png, v.nii.gz)",),
    ),
    ("folder", "labels in JPEG"): (
        lambda r: (r / "labels/a0.png").unlink() or write_png(r / "labels/a0.jpg", blob((ROWS, COLUMNS), 2)),
        ("labels/a0.jpg", "labels in JPEG"),
    ),
    ("folder", "a photograph in the place of labels"): (
        picture_with("labels/a0.png", random_image(5, ROWS, COLUMNS * 9)),
        ("labels/a0.png", "different values", "a mask with a number per class"),
    ),
    ("folder", "255 beside other classes"): (
        picture_with("labels/a0.png", np.where(blob((ROWS, COLUMNS), 2) == 1, 255, 1).astype(np.uint8)),
        ("the value 255 (in a0.png) beside 1, 2", "--ignore 255"),
    ),
    ("folder", "colours among grey images"): (
        picture_with("unlabeled/u0.png", random_image(5, ROWS, COLUMNS, 3)),
        ("unlabeled/u0.png", "3 channels (RGB)", "1 channel (grey)"),
    ),
    ("folder", "labels without a class"): (
        lambda r: [write_png(p, np.zeros((ROWS, COLUMNS), np.uint8)) for p in (r / "labels").iterdir()],
        ("labels", "background only"),
    ),
    ("folder", "no labels at all"): (
        lambda r: (r / "labels").rename(r / "elsewhere"),
        ("images/a0.png", "no label for it"),
    ),
    ("folder", "images a folder too deep"): (into_subfolder("images"), ("images: got", "but the folders sub")),
    ("folder", "labels a folder too deep"): (into_subfolder("labels"), ("labels: got", "but the folders sub")),
    ("folder", "unlabeled images a folder too deep"): (
        into_subfolder("unlabeled"),
        ("unlabeled: got", "but the folders sub", "move them up into it"),
    ),
    ("folder", "nothing"): (
        lambda r: [(r / n).rename(r.parent / n) for n in ("images", "labels", "unlabeled")],
        ("an empty folder", "the folders images and labels"),
    ),
}
