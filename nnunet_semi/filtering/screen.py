"""`nnunet_semi screen`: the sheet of thumbnails on which a person ticks unlabeled cases."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from nnunet_semi import raw
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.filtering.images import ImageSource
from nnunet_semi.filtering.page import Tile, page
from nnunet_semi.filtering.parts import provenance_of
from nnunet_semi.filtering.table import Row, current_rows, newest_table, read_table, require_dataset, tell_unscored
from nnunet_semi.fingerprint import fingerprint
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.pool import for_each
from nnunet_semi.storage import atomic_path

SIZE, QUALITIES = 192, (70, 50, 30, 10)  # pixels; of JPEG, the first that is small enough
BYTES_PER_CASE = 16_000  # no case takes more of the file; most take half of it


@dataclass(frozen=True)
class ScreenSummary:
    """What `screen` wrote; as text, a line."""

    path: Path
    cases: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.cases} cases, {self.size / 1e6:.1f} MB; open it in a browser"


def screen_unlabeled(
    dataset: str | int,
    table: Path | str | None = None,
    output: Path | str | None = None,
    num_processes: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    plans: str = "nnUNetPlans",
    log: Log = to_stderr,
) -> ScreenSummary:
    """Writes the page: a thumbnail of every unlabeled case, with its score and the prediction's outline if there are.

    Args:
        table: of `nnunet_semi score`; None for the newest of the dataset, or images alone if there is none. Cases
            come by their score, the worst first.
        output: the HTML file; None for DATASET_screen.html in the working directory.
        plans: whose images are shown; a table that `score` has written says so itself.
        log: takes a sentence about cases that have no score, and are not on the page.

    Raises:
        WrongUse: the output is not named .html.
        EnvironmentNotReady: the dataset, the table or the preprocessed images are missing.
        UserError: the output exists, or the table is not one of this dataset.
    """
    name = raw.dataset_name(dataset)
    path = _free_output(Path(output or f"{name}_screen.html"), overwrite)
    found = newest_table(name) if table is None else Path(table).resolve()
    rows: dict[str, Row] = {}
    if found is None:
        source = ImageSource.of_dataset(name, plans)
        cases = source.cases()
    else:
        provenance = provenance_of(found)
        require_dataset(found, provenance, name)
        scored = read_table(found)
        source = ImageSource.of_table(name, found, provenance, plans)
        unlabeled, bad = source.unlabeled(), source.bad()
        current = current_rows(found, scored, provenance, name, unlabeled)
        rows = {row.case: row for row in sorted(current, key=lambda row: (row.score, row.case))}
        tell_unscored([case for case in unlabeled if case not in rows and case not in bad], log)
        cases = list(rows)
    pictures = dict(for_each(partial(thumbnail, source), cases, num_processes, "drawing", progress))
    notes = [
        "Tick cases with a click, or with the arrow keys and the space bar, then save the list: nnunet_semi select "
        "--exclude screened.txt leaves them out, --include screened.txt takes no others."
    ]
    if found is not None:
        notes.append(f"Worst score first, by {found.name}. Outlines: what the model predicts.")
    tiles = (Tile(case, _note(rows, case), pictures[case]) for case in cases)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page(f"Unlabeled cases of {name}", f"{name} {fingerprint(cases)}", tiles, notes))
    return ScreenSummary(path, len(cases), path.stat().st_size)


def _free_output(path: Path, overwrite: bool) -> Path:
    if path.suffix not in (".html", ".htm"):
        raise WrongUse(f"got -o {path}; expected a name that ends in .html")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of -o {path.name} does not exist; make it first")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name with -o, or pass --overwrite to replace it")
    return path.absolute()


def thumbnail(source: ImageSource, case: str) -> str:
    """The picture of a case as base64 of a JPEG."""
    picture = Image.fromarray(source.picture(case, SIZE))
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() < BYTES_PER_CASE * 0.7:  # base64 adds a third, the page a little
            break
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _note(rows: Mapping[str, Row], case: str) -> str:
    if case not in rows:
        return ""
    row = rows[case]
    missing = [name for name, count in row.components.items() if not count]
    return f"score {row.score:.3f}" + (f", without {raw.name_some(missing)}" if missing else "")
