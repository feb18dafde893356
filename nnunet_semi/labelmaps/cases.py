"""Which files of several folders belong to one case, and whether their voxels can be compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from nnunet_semi.errors import UserError
from nnunet_semi.labelmaps.files import ENDINGS, case_of, ending_of, read_grid
from nnunet_semi.raw import name_some

Cases = dict[str, list[Path]]  # case → its files in the order of the folders


def label_files(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case, sorted; hidden files and other formats are passed over.

    Raises:
        UserError: there is no such folder, no label map in it, or two files for one case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the label maps")
    paths = sorted(path for path in folder.iterdir() if ending_of(path) and not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in paths:
        if case_of(path) in found:
            raise UserError(
                f"{folder} holds two label maps of the case {case_of(path)} ({found[case_of(path)].name} and "
                f"{path.name}); remove one"
            )
        found[case_of(path)] = path
    if not found:
        hint = "; files of landmarks are for evaluate --landmarks" if next(folder.glob("*.json"), None) else ""
        raise UserError(f"{folder} holds no label map; expected files that end in {', '.join(ENDINGS)}{hint}")
    return found


def matching_cases(folders: Sequence[Path], others_may_have_more: bool = False, chill: bool = False) -> Cases:
    """The files of each case, one of every folder, on the same grid; reads headers only.

    Args:
        folders: each has to have the same cases. Two files instead are one case.
        others_may_have_more: only the cases of the first folder are asked for.
        chill: leave out cases that are missing in a folder, as nnU-Net's own --chill does.

    Returns:
        Case → its files in the order of the folders.

    Raises:
        UserError: names everything that does not fit, at once.
    """
    if all(folder.is_file() for folder in folders):
        cases, problems = {case_of(folders[0]): list(folders)}, []
    else:
        listings = [label_files(folder) for folder in folders]
        asked_for = listings[0] if others_may_have_more else sorted(set().union(*listings))
        complete = [case for case in asked_for if all(case in listing for listing in listings)]
        cases = {case: [listing[case] for listing in listings] for case in complete}
        problems = [] if chill and cases else _missing(folders, listings, asked_for)
    problems += _different(cases)
    if problems:
        raise UserError(f"{'; '.join(problems)}; nothing was done")
    return cases


def _missing(folders: Sequence[Path], listings: Sequence[Collection[str]], asked_for: Collection[str]) -> list[str]:
    lacking = {
        folder: [case for case in asked_for if case not in listing]
        for folder, listing in zip(folders, listings, strict=True)
    }
    return [
        f"{folder} lacks {len(cases)} of {len(asked_for)} cases: {name_some(cases, 10)}"
        for folder, cases in lacking.items()
        if cases
    ]


def _different(cases: Cases) -> list[str]:
    unreadable, different = [], []
    for case, (first, *others) in cases.items():
        try:
            grid = read_grid(first)
            found = ((path, grid.difference(read_grid(path))) for path in others)
            different += [f"{case} ({said}, {path})" for path, said in found if said]
        except UserError as error:
            unreadable.append(str(error))
    problems = [name_some(unreadable, 10)] if unreadable else []
    if different:
        problems.append(f"{len(different)} files are not on the grid of the first folder: {name_some(different, 10)}")
    return problems
