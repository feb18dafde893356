"""A look into the folders of a source, and never out of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_semi.errors import Problem, WrongUse
from nnunet_semi.raw import name_some

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
JUNK = {"thumbs.db", "desktop.ini"}


class Source:
    """Lists the files of a source, and collects what is wrong with them as far as names and links tell.

    Attributes:
        root: the folder that the user named.
        problems: what is wrong.
        notes: what the user should know.

    Raises:
        WrongUse: there is no such folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        if not self.root.is_dir():
            found = "a file; unpack it and name the folder" if self.root.exists() else "which does not exist"
            raise WrongUse(f"got the source {self.root}, {found}; expected a folder with the data")
        self._inside = [self.root.resolve()]

    def allow(self, folder: Path) -> None:
        """Lets links lead into another folder that the user named."""
        self._inside.append(folder.resolve())

    def find(self, *candidates: str) -> Path | None:
        """The first of some folders below the root that exists; patterns as in `glob`."""
        return next((folder for pattern in candidates for folder in self.find_all(pattern)), None)

    def find_all(self, pattern: str) -> list[Path]:
        """All folders that match a pattern below the root, sorted."""
        return [folder for folder in sorted(self.root.glob(pattern)) if folder.is_dir()]

    def files(self, folder: Path, endings: Sequence[str], note_others: bool = True) -> dict[str, Path]:
        """The files of a folder by their name without the ending; upper and lower case of the ending are the same.

        Hidden files and folders are passed over, and files with other endings and folders may be noted. A file that is
        empty, is no file, leads out of the source or has the name of another one is a problem and left out; so are
        folders in the place of the files.
        """
        found: dict[str, Path] = {}
        others = []
        entries = self._entries(folder)
        folders = [path.name for path in entries if path.is_dir()] if note_others else []
        for path in (path for path in entries if not path.is_dir()):
            ending = ending_of(path.name, endings)
            if ending is None:
                others.append(path.name)
            elif self._is_sound(path):
                stem = path.name[: -len(ending)]
                other = found.setdefault(stem, path)
                if other != path:
                    self.problems.append(Problem(path, f"the same name as {other.name}", "one file of each name"))
        if others and note_others:
            kinds = ", ".join(endings)
            count = f"{len(others)} in {folder.name}"
            self.notes.append(f"left out, because not ending in {kinds}: {count}: {name_some(others)}")
        if folders and not found:
            reason = f"no file ending in {', '.join(endings)}, but the folders {name_some(folders)}"
            self.problems.append(Problem(folder, reason, "the files themselves; move them up into it"))
        elif folders and folder != self.root:  # below that one lies all that is wanted
            self.notes.append(f"left out, because in folders below {folder.name}: what is in {name_some(folders)}")
        return found

    def _entries(self, folder: Path) -> list[Path]:
        if not self._stays_inside(folder):
            return []
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.problems.append(Problem(folder, f"{error.strerror}", "a folder that can be read"))
            return []
        return [entry for entry in entries if not (entry.name.startswith(".") or entry.name.lower() in JUNK)]

    def holds(self, path: Path) -> bool:
        """Whether a file of this name is there; one that is no file, or leads out of the source, is a problem."""
        return os.path.lexists(path) and self._is_sound(path)

    def _is_sound(self, path: Path) -> bool:
        if not path.is_file():
            found = "a link that leads nowhere" if path.is_symlink() else "neither a file nor a folder"
            self.problems.append(Problem(path, found, "a file"))
            return False
        if not path.stat().st_size:
            self.problems.append(Problem(path, "an empty file", "an image or its labels"))
            return False
        return self._stays_inside(path)

    def _stays_inside(self, path: Path) -> bool:
        real = path.resolve()
        if any(real.is_relative_to(folder) for folder in self._inside):
            return True
        self.problems.append(Problem(path, f"a link that leads out of the source, to {real}", "files inside of it"))
        return False

    def unknown_layout(self, expected: str) -> None:
        """Notes that none of the known folders is there."""
        names = sorted(entry.name for entry in self.root.iterdir() if not entry.name.startswith("."))
        self.problems.append(Problem(self.root, name_some(names, 6) or "an empty folder", expected))

    def empty(self, folder: Path, expected: str) -> None:
        """Notes that a folder holds nothing of what it should hold, unless something else is wrong with it."""
        if not any(problem.file == folder or folder in problem.file.parents for problem in self.problems):
            self.problems.append(Problem(folder, "no such file in it", expected))

    def pairs(
        self,
        images: Mapping[str, Path],
        labels: Mapping[str, Path],
        image_folder: Path,
        label_folder: Path,
        hint: str = "",
    ) -> list[tuple[str, Path, Path]]:
        """Name, image and label of every case that has both; the others are problems, with a hint on missing labels."""
        for stem in sorted(images.keys() - labels.keys()):
            expected = f"{label_folder.name}/{stem} with its ending{hint}"
            self.problems.append(Problem(images[stem], "no label for it", expected))
        for stem in sorted(labels.keys() - images.keys()):
            expected = f"{image_folder.name}/{stem} with its ending"
            self.problems.append(Problem(labels[stem], "no image for it", expected))
        return [(stem, images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def ending_of(name: str, endings: Iterable[str]) -> str | None:
    """Which of the endings a file name has, as it is written there; the longest one if there are several."""
    fitting = [ending for ending in endings if name.lower().endswith(ending) and len(name) > len(ending)]
    return name[-len(max(fitting, key=len)) :] if fitting else None
