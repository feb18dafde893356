"""`nnunet_semi ensemble`: majority vote of label maps, case by case.

nnU-Net's own `nnUNetv2_ensemble` averages probabilities, which have to be kept for it; a vote needs label maps only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_semi.errors import UserError, WrongUse, cause_of
from nnunet_semi.labelmaps.cases import matching_cases
from nnunet_semi.labelmaps.files import (
    PICTURES,
    TIFF,
    LabelMap,
    count_white,
    ending_of,
    files_like,
    read_label_map,
    write_label_map,
)
from nnunet_semi.log import Log, silent
from nnunet_semi.pool import for_each
from nnunet_semi.raw import name_some

WHITE = 255


@dataclass(frozen=True)
class Ballot:
    """One case to vote on: the files of all predictions, the first of which says format and grid of the output."""

    predictions: tuple[Path, ...]
    output: Path
    binary: bool


def ensemble(
    predictions: Sequence[Path | str],
    output: Path | str,
    *,
    binary: bool | None = None,
    overwrite: bool = False,
    num_processes: int | None = None,
    progress: bool = True,
    log: Log = silent,
) -> Path:
    """Writes for each case the label that most predictions have at a voxel; all cases, or nothing if one fails.

    Where labels tie, the prediction that is listed first among those with the tied labels decides. Binary masks are
    "above 0", of any depth and number of channels, and are written as 0 and 255 in one channel; a pixel is set where
    more than half of the masks have it, so that a tie is background.

    Args:
        predictions: two folders or more with the same cases in any formats; output has the format of the first.
        output: the folder to write into; it is made.
        binary: whether these are binary masks. None looks: they are if most of what is above 0 in all of them is white
            (255 or 65535, without a palette) or in pictures with colours. Volumes alone are label maps.
        overwrite: replace files that are there.
        num_processes: see `pool.number_of_processes`.
        progress: show a bar on a terminal.
        log: takes a sentence about what the look at pictures said.

    Returns:
        The output folder.

    Raises:
        WrongUse: fewer than two predictions, one of them twice, or the output is one of them.
        UserError: cases are missing, unreadable, or not on one grid; masks and label maps are mixed; output files
            exist or cannot be written.
    """
    folders, output = [Path(folder) for folder in predictions], Path(output)
    if len(folders) < 2:
        raise WrongUse(f"got {len(folders)} predictions; expected two or more folders to vote")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise WrongUse(f"got {', '.join(map(str, folders))}, one of them twice; expected each once")
    if any(folder.resolve() == output.resolve() for folder in folders):
        raise WrongUse(f"got the output {output}, which is one of the predictions; choose another -o")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give folders of predictions")
    cases = matching_cases(folders)
    _prepare(output, [name for paths in cases.values() for name in files_like(paths[0])], overwrite)
    if binary is None:
        binary = _look([path for paths in cases.values() for path in paths], num_processes, progress, log)
    with _scratch(output) as scratch:
        ballots = [Ballot(tuple(paths), Path(scratch, paths[0].name), binary) for paths in cases.values()]
        done = for_each(vote_on, ballots, num_processes, "ensemble", progress)
        problems = [problem for _, problem in done if problem]
        if problems:
            raise UserError(f"{len(problems)} of {len(ballots)} cases cannot be voted on: {name_some(problems, 10)}")
        if (folders[0] / "dataset.json").is_file() and (overwrite or not (output / "dataset.json").exists()):
            shutil.copy(folders[0] / "dataset.json", scratch)  # it says what the labels are
        for file in sorted(scratch.iterdir()):
            os.replace(file, output / file.name)
    return output


def _prepare(output: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuses an output that holds one of the files, or is one."""
    there = [name for name in names if os.path.lexists(output / name)]
    if there and not overwrite:
        raise UserError(f"{output} already holds {name_some(there)}; choose another -o, or pass --overwrite")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give -o a folder")


def _look(paths: Sequence[Path], num_processes: int | None, progress: bool, log: Log) -> bool:
    """Whether these are binary masks by their looks.

    Not whether white occurs: edges of masks may be grey, and label maps may have a class 255.
    """
    if not any(ending_of(path) in (*PICTURES, *TIFF) for path in paths):
        return False
    found = list(for_each(_counts, paths, num_processes, "look", progress))
    binary = sum(white for _, (white, _) in found) > sum(others for _, (_, others) in found)
    if binary:
        odd = [str(path) for path, (white, others) in found if others and not white]
        looks = ("label maps, without any white", "white masks")
        said = "masks: what is above 0 is counted, and 0 and 255 are written (otherwise pass --no-binary)"
    else:
        odd = [str(path) for path, (white, others) in found if white and not others]
        looks = ("masks, black and white or coloured", "label maps")
        said = "label maps: every value is a label (otherwise pass --binary)"
    if odd:
        raise UserError(
            f"{len(odd)} of {len(found)} files look like {looks[0]}: {name_some(sorted(odd))}; expected {looks[1]}, as "
            "others are; give files of one kind, or say of which they are: --binary for masks, --no-binary for labels"
        )
    log(f"the pictures look like {said}")
    return binary


def _counts(path: Path) -> tuple[int, int]:
    try:
        return count_white(path)
    except UserError:  # the vote tells about all such files
        return 0, 0


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder for unfinished files in the output, which is made, and which goes again if nothing gets into it."""
    made = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".voting_", dir=output) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {cause_of(error)}; make sure that there is free space and that you "
            f"may write into {output}, or choose another -o"
        ) from error
    finally:
        if made:
            with suppress(OSError):  # it holds the result
                output.rmdir()


def vote_on(ballot: Ballot) -> str:
    """Votes on one case and writes the result; gives what is wrong with a file, or ""."""
    try:
        label_maps = [read_label_map(path, ballot.binary)[0] for path in ballot.predictions]
    except UserError as error:
        return str(error)
    result = majority_mask(label_maps) * np.uint8(WHITE) if ballot.binary else majority(label_maps)
    write_label_map(ballot.output, result, like=ballot.predictions[0])
    return ""


def majority(label_maps: Sequence[LabelMap]) -> LabelMap:
    """The label with the most votes at each voxel; of tied labels that which comes first in the list.

    Args:
        label_maps: of one shape.
    """
    dtype = np.result_type(*label_maps)
    winner, most = label_maps[0].astype(dtype), _votes(label_maps[0], label_maps)
    for candidate in label_maps[1:]:
        votes = _votes(candidate, label_maps)
        better = votes > most
        winner[better], most[better] = candidate[better], votes[better]
    return winner


def majority_mask(masks: Sequence[LabelMap]) -> LabelMap:
    """1 where more than half of the masks are above 0, else 0."""
    votes = np.zeros(masks[0].shape, np.min_scalar_type(2 * len(masks)))
    for mask in masks:
        votes += mask > 0
    return (votes * 2 > len(masks)).view(np.uint8)


def _votes(candidate: LabelMap, label_maps: Sequence[LabelMap]) -> LabelMap:
    """How many label maps agree with the candidate at each voxel."""
    votes = np.zeros(candidate.shape, np.min_scalar_type(len(label_maps)))
    for label_map in label_maps:
        votes += label_map == candidate
    return votes
