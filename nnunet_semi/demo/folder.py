"""The folder of a demo: what it was started with and which steps are done, so that it can be stopped and continued."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.raw import FOLDERS
from nnunet_semi.storage import write_json

STATE = "demo.json"
SCORES = "scores.json"
PICTURES = "comparison.png"
PREDICTIONS = "predictions"
CONTENT = (*FOLDERS, PREDICTIONS, "logs", SCORES, PICTURES)


@dataclass(frozen=True)
class Settings:
    """What the results of a demo depend on.

    Attributes:
        seed: of the images and of both trainings.
        epochs, iterations: length of both trainings; iterations are those of one epoch.
        width: channels of the network's first stage.
        labeled, unlabeled, test: numbers of cases.
    """

    seed: int
    epochs: int
    iterations: int
    width: int
    labeled: int
    unlabeled: int
    test: int


class DemoFolder:
    """A folder with a demo in it, begun or finished.

    Attributes:
        path: the folder, absolute.
        continued: some steps were done before.
    """

    def __init__(self, path: Path, settings: Settings, seconds: dict[str, float]) -> None:
        self.path = path
        self.settings = settings
        self.continued = bool(seconds)
        self._seconds = seconds
        path.mkdir(parents=True, exist_ok=True)
        self._write()  # first: from now on the folder is known as a demo's
        (path / "logs").mkdir(exist_ok=True)

    def is_done(self, step: str) -> bool:
        """Whether the step was finished, now or in an earlier run."""
        return step in self._seconds

    def mark_done(self, step: str, seconds: float) -> None:
        """Notes that the step is finished."""
        self._seconds[step] = round(seconds, 1)
        self._write()

    @property
    def seconds(self) -> float:
        """What all finished steps took."""
        return sum(self._seconds.values())

    def _write(self) -> None:
        write_json(self.path / STATE, {"settings": asdict(self.settings), "done": self._seconds})


def open_folder(path: Path | None, settings: Settings, overwrite: bool) -> DemoFolder:
    """A new demo folder, or one that was begun with the same settings.

    Args:
        path: where; None makes a new folder among the temporary ones, which stays.
        settings: what the demo is started with.
        overwrite: remove what an earlier demo left in the folder; never anything else.

    Raises:
        WrongUse: the folder holds something else, or a demo with other settings and `overwrite` is off.
        UserError: the state file of a demo cannot be read.
    """
    if path is None:
        return DemoFolder(Path(tempfile.mkdtemp(prefix="nnunet_semi_demo_")), settings, {})
    path = path.expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise WrongUse(f"{path} is a file; expected a folder for the demo, new, empty or with a demo in it")
    if not path.exists() or not any(path.iterdir()):
        return DemoFolder(path, settings, {})
    if not (path / STATE).is_file():
        raise WrongUse(
            f"{path} is not empty and holds no demo, so nothing was written; choose a new or an empty folder"
        )
    if overwrite:
        _clear(path)
        return DemoFolder(path, settings, {})
    return DemoFolder(path, settings, _steps_done(path / STATE, settings))


def _steps_done(state: Path, settings: Settings) -> dict[str, float]:
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        before, done = content["settings"], dict(content["done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state} cannot be read ({error!r}); remove this demo folder or choose another one") from error
    wanted = asdict(settings)
    for name in {**before, **wanted}:
        if before.get(name) != wanted.get(name):
            raise WrongUse(
                f"{state.parent} holds a demo with {name} {before.get(name)}, but {wanted.get(name)} was asked for; "
                "choose another folder, or overwrite this demo"
            )
    return done


def _clear(path: Path) -> None:
    """The state goes last: a half-cleared folder is still known as a demo's."""
    for name in (*CONTENT, STATE):
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
