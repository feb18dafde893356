"""unlabeled_final.json: which unlabeled cases training uses, as `nnunet_semi select` left it.

    {"selected": ["un_001", "un_007"], "left_out": {"un_002": "score 0.31 is not above 0.9"}, "rules": {…}, …}

It lies beside nnU-Net's splits_final.json, and a person may edit it. Training reads `selected` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_semi.errors import UserError
from nnunet_semi.raw import load_json, name_some
from nnunet_semi.unlabeled.index import UnlabeledIndex

SELECTION = "unlabeled_final.json"
REMEDY = "run `nnunet_semi select` again, or delete the file to use all unlabeled cases"


def selected_cases(path: Path) -> list[str] | None:
    """The cases that a file of this kind selects, sorted; None, which stands for all, where there is no file.

    Raises:
        UserError: it is damaged, or selects nothing.
    """
    if not path.is_file():
        return None
    cases = load_json(path).get("selected")
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UserError(f"{path} has no list of case names as 'selected'; {REMEDY}")
    if not cases:
        raise UserError(f"{path} selects no case; {REMEDY}")
    return sorted(set(cases))


def usable_cases(
    index: UnlabeledIndex, begun_with: dict[str, Any] | None = None
) -> tuple[list[str], dict[str, Any], str]:
    """The good unlabeled cases that a training uses.

    A training that is continued goes on with the selection it began with, so that it ends as if it had never stopped;
    of cases that were deleted since, as without a selection, it goes on with the others.

    Args:
        index: of the preprocessed unlabeled cases; `unlabeled_final.json` is looked for beside its folder.
        begun_with: what this function gave for the checkpoint.

    Returns:
        The cases, sorted; what the checkpoint must remember; a sentence that says which cases they are.

    Raises:
        UserError: the selection is damaged, empty, names cases that the dataset does not have, or none is left.
    """
    path = index.folder.parent / SELECTION
    selected, changed = selected_cases(path), False
    if begun_with is not None:
        selected, changed = begun_with["selected"], selected != begun_with["selected"]
    state, good, gone = {"selected": selected}, index.good, list[str]()
    if selected is not None:
        gone = sorted(set(selected) - index.cases.keys())
        if begun_with is None:
            _require_known(path, gone)
        good = sorted(set(good) & set(selected))  # bad cases may be selected; they are skipped by the user's choice
    if not good and gone:
        raise UserError(f"the cases that this training began with are gone ({name_some(gone)}); begin without --c")
    if not good:
        raise UserError(f"{path} selects bad cases only ({name_some(selected or [])}); select others")
    sentence = f"{len(good)} of {len(index.good)} unlabeled cases in {index.folder}"
    if gone:
        return good, state, f"{sentence}, as when this training began but for {name_some(gone)}, deleted since"
    if changed:
        return good, state, f"{sentence}, as when this training began; {path} has changed since"
    return good, state, sentence if selected is None else f"{sentence}, chosen by {path}"


def _require_known(path: Path, unknown: Sequence[str]) -> None:
    if unknown:
        raise UserError(
            f"{path} selects {len(unknown)} case(s) that are not among the unlabeled ones ({name_some(unknown)}); "
            "run `nnunet_semi score` and `nnunet_semi select` again, or delete the file to use all unlabeled cases"
        )
