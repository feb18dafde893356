"""`nnunet_semi select`: from a table of scores to unlabeled_final.json, which training obeys, and a picture of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi import __version__, raw
from nnunet_semi.errors import UserError
from nnunet_semi.filtering.images import ImageSource
from nnunet_semi.filtering.parts import provenance_of
from nnunet_semi.filtering.picture import draw_selection
from nnunet_semi.filtering.rules import Rules, Selected
from nnunet_semi.filtering.table import current_rows, find_table, read_table, require_dataset, tell_unscored
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.storage import write_json
from nnunet_semi.unlabeled.selection import SELECTION


@dataclass(frozen=True)
class SelectSummary:
    """What `select` wrote; as text, a line. `total` counts the unlabeled cases that there are.

    Where lists alone decided, there is no table and no picture.
    """

    path: Path
    selected: Selected
    total: int
    table: Path | None = None
    picture: Path | None = None

    def __str__(self) -> str:
        by = "" if self.table is None else f" by {self.table}; picture: {self.picture}"
        return f"{self.path}: {len(self.selected.cases)} of {self.total} unlabeled cases{by}"


def select_unlabeled(
    dataset: str | int,
    rules: Rules,
    table: Path | str | None = None,
    overwrite: bool = False,
    plans: str = "nnUNetPlans",
    log: Log = to_stderr,
) -> SelectSummary:
    """Selects the unlabeled cases that all semi-supervised trainings of a dataset use from now on.

    Writes unlabeled_final.json beside nnU-Net's splits_final.json, and unlabeled_final.png: a histogram of the scores,
    and the worst and best cases with the prediction drawn in. Labeled cases are no rows of a table, and are never
    left out. Where the rules are lists alone and no table is named, no score is needed, and there is no picture.

    Args:
        rules: a case must pass all of them.
        table: of `nnunet_semi score`; None for the newest one of the dataset, where one is needed.
        overwrite: replace another selection.
        plans: whose images are drawn; a table that `score` has written says so itself.
        log: takes sentences about what is going on.

    Raises:
        EnvironmentNotReady: the dataset or the table is missing.
        UserError: the table is damaged or of another dataset, no case passes, or there is another selection.
    """
    name = raw.dataset_name(dataset)
    path = raw.dataset_folder(raw.PREPROCESSED, name) / SELECTION
    picture = path.with_suffix(".png")
    if table is None and rules.only_lists:
        source = ImageSource.of_dataset(name, plans)
        unlabeled, bad = source.unlabeled(), source.bad()
        selected = rules.of_cases([case for case in unlabeled if case not in bad], log)
        selected = _with_reasons(selected, {case: bad[case] for case in unlabeled if case in bad})
        content = _content(selected, rules)
        _refuse_other(path, content, overwrite)
        picture.unlink(missing_ok=True)  # of another selection
        write_json(path, content)
        return SelectSummary(path, selected, len(unlabeled))
    table = find_table(name, table)
    provenance = provenance_of(table)
    require_dataset(table, provenance, name)
    scored = read_table(table)
    source = ImageSource.of_table(name, table, provenance, plans)
    unlabeled, bad = source.unlabeled(), source.bad()
    rows = current_rows(table, scored, provenance, name, unlabeled)
    selected = rules(rows, log)
    gone = dict.fromkeys({row.case for row in scored} - {*unlabeled}, "no longer in imagesUn")
    without = sorted({*unlabeled} - {row.case for row in scored})
    tell_unscored([case for case in without if case not in bad], log)
    unscored = {case: bad.get(case, "not in the table of scores") for case in without}
    selected = _with_reasons(selected, {**unscored, **gone})
    content = _content(selected, rules, table=str(table), scores=provenance)
    _refuse_other(path, content, overwrite)
    draw_selection(picture, rows, selected, rules, source)
    write_json(path, content)  # last: whoever finds it finds all
    return SelectSummary(path, selected, len(unlabeled), table, picture)


def _with_reasons(selected: Selected, reasons: dict[str, str]) -> Selected:
    return Selected(selected.cases, dict(sorted({**selected.left_out, **reasons}.items())))


def _content(selected: Selected, rules: Rules, **scored: Any) -> dict[str, Any]:
    """Of unlabeled_final.json."""
    return {
        "selected": selected.cases,
        "left_out": selected.left_out,
        "rules": rules.as_json(),
        **scored,
        "written_by": f"nnunet_semi select {__version__}",
    }


def _refuse_other(path: Path, content: dict[str, Any], overwrite: bool) -> None:
    if path.is_file() and not overwrite:
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(content))
        except ValueError:
            same = False
        if not same:
            raise UserError(f"{path} holds another selection; pass --overwrite to replace it, or delete it")
