"""From imagesUn to preprocessed cases: `nnunet_semi preprocess`, and the same step at the start of a training.

Cases go through nnU-Net's own preprocessor with the plans of the labeled cases. An index beside them (see index.py)
remembers what they were made from, so that a further run does only what is missing, changed or was bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi import raw
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.unlabeled.case import Recipe, preprocess_command
from nnunet_semi.unlabeled.index import UnlabeledIndex
from nnunet_semi.unlabeled.update import update, watch

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")  # those of nnUNetv2_preprocess


@dataclass(frozen=True)
class IdentifierSummary:
    """What one run did for one data identifier.

    Attributes:
        folder: where the preprocessed cases are.
        preprocessed: number of cases that were preprocessed well in this run.
        unchanged: number of cases that were up to date already.
        removed: number of cases whose raw files are gone.
        bad: case id → reason.
        warnings: sentences about what is probably not meant so.
    """

    folder: Path
    preprocessed: int
    unchanged: int
    removed: int
    bad: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {"preprocessed": self.preprocessed, "unchanged": self.unchanged, "removed": self.removed}
        told = [f"{count} {what}" for what, count in {**counts, "bad": len(self.bad)}.items() if count]
        return f"{self.folder}: {', '.join(told)}"


@dataclass(frozen=True)
class PreprocessingSummary:
    """What `preprocess_unlabeled` did; as text, a line per data identifier, bad case and warning."""

    dataset: str
    identifiers: list[IdentifierSummary]

    @property
    def bad(self) -> dict[str, str]:
        """Case id → reason of the cases that are bad for at least one data identifier."""
        return {case: reason for summary in self.identifiers for case, reason in summary.bad.items()}

    @property
    def warnings(self) -> list[str]:
        """All warnings."""
        return [warning for summary in self.identifiers for warning in summary.warnings]

    def __str__(self) -> str:
        bad = [f"bad: {case}: {reason}" for case, reason in self.bad.items()]
        return "\n".join([*map(str, self.identifiers), *bad, *(f"warning: {warning}" for warning in self.warnings)])


class BadCases(UserError):
    """Some cases are bad and the user has not chosen to skip them.

    Attributes:
        summary: what was done nevertheless; None at the start of a training.
    """

    def __init__(self, message: str, summary: PreprocessingSummary | None = None) -> None:
        super().__init__(message)
        self.summary = summary


def preprocess_unlabeled(
    dataset: str | int,
    configurations: Sequence[str] | None = None,
    plans: str = "nnUNetPlans",
    num_processes: int | None = None,
    skip_bad: bool = False,
    progress: bool = True,
    log: Log = to_stderr,
) -> PreprocessingSummary:
    """Preprocesses what is missing, changed or was bad among the unlabeled cases of a dataset.

    Args:
        dataset: name or id.
        configurations: None stands for those of 2d, 3d_fullres and 3d_lowres that are planned.
        plans: name of the plans file.
        num_processes: 1 works in this process; None stands for nnU-Net's default, at most one per core.
        skip_bad: whether training shall go without bad cases instead of refusing to start; this is remembered.
        progress: whether to show it, as a bar on stderr or as lines in the log.
        log: takes sentences about what is going on.

    Raises:
        BadCases: there are bad cases and `skip_bad` is False, or no good ones; the good ones are done.
        UserError: folders, plans, file names or the machine are not as needed.
    """
    name = raw.dataset_name(dataset)
    folder = raw.dataset_folder(raw.RAW, name)
    plans_dict, dataset_json = raw.load_plans(name, plans)
    recipes = _recipes(plans_dict, configurations, dataset_json, name)
    cases = raw.unlabeled_cases(folder, dataset_json, log)
    summaries = []
    for recipe, sharing in recipes:
        index, counts = update(
            recipe, cases, num_processes=num_processes, skip_bad=skip_bad, retry_bad=True, log=log, progress=progress
        )
        unchanged = len(index.good) - counts["good"]
        warnings = [warning for other in sharing for warning in _warnings(index, other)]
        summaries.append(
            IdentifierSummary(recipe.folder, counts["good"], unchanged, counts["removed"], index.bad, warnings)
        )
    summary = PreprocessingSummary(name, summaries)
    command = preprocess_command(name, configurations, plans)
    if len(summary.bad) == len(cases):
        raise BadCases(_none_usable(summary.bad, name, command), summary)
    if summary.bad and not skip_bad:
        raise BadCases(_refusal(summary.bad, name, command), summary)
    return summary


def ensure_preprocessed(
    plans_manager: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
    *,
    num_processes: int | None = None,
    rank: int = 0,
    log: Log = to_stderr,
) -> UnlabeledIndex:
    """The unlabeled cases for a training, preprocessed first where that was not done yet.

    Under DDP every rank calls it: rank 0 works, the others watch the index, so that no collective operation can time
    out. Where the raw images are not at hand (a cluster with preprocessed data only), what is preprocessed is used.

    Args:
        plans_manager: of the training.
        configuration: the name of its configuration.
        dataset_json: of the training.
        num_processes: see `preprocess_unlabeled`.
        rank: global rank of this process.
        log: takes sentences about what is going on.

    Returns:
        An index whose `folder`, `good` and `shapes` are what a loader needs.

    Raises:
        BadCases: a case is bad, and the user has not chosen `--skip-bad`.
        UserError: folders, plans, file names or the machine are not as needed, or no case is left.
    """
    plans, name = plans_manager.plans, plans_manager.dataset_name
    [(recipe, _)] = _recipes(plans, [configuration], dataset_json, name)
    try:
        cases = raw.unlabeled_cases(raw.dataset_folder(raw.RAW, name), dataset_json, log)
    except EnvironmentNotReady as error:
        index = _without_raw_images(recipe, error, log)
    else:
        if rank == 0:
            choices: dict[str, Any] = {"skip_bad": None, "retry_bad": False, "remove_gone": False}
            index, _ = update(recipe, cases, num_processes=num_processes, log=log, **choices)
        else:
            index = watch(recipe, cases)
        index.keep_only(cases)
    if index.bad and not index.skip_bad:
        raise BadCases(_refusal(index.bad, name, recipe.command))
    if not index.good:
        raise UserError(_none_usable(index.bad, name, recipe.command))
    if index.bad:
        log(f"training goes without {len(index.bad)} bad unlabeled case(s), as was chosen: {_reasons(index.bad)}")
    for warning in _warnings(index, recipe):
        log(f"warning: {warning}")
    return index


def _recipes(
    plans: dict[str, Any], configurations: Sequence[str] | None, dataset_json: dict[str, Any], name: str
) -> list[tuple[Recipe, list[Recipe]]]:
    """A recipe for each data identifier, with those of all requested configurations that share it."""
    available = plans.get("configurations", {})
    requested = configurations or [name for name in DEFAULT_CONFIGURATIONS if name in available]
    if not requested:
        raise WrongUse(f"the plans of {name} have none of {', '.join(DEFAULT_CONFIGURATIONS)}; choose with -c")
    folder = raw.nnunet_folder(raw.PREPROCESSED) / name
    found: dict[str, list[Recipe]] = {}
    for configuration in dict.fromkeys(requested):
        resolved = raw.resolve_configuration(plans, configuration)
        recipe = Recipe(plans, configuration, resolved, dataset_json, folder)
        found.setdefault(recipe.data_identifier, []).append(recipe)
        _refuse_ambiguous(recipe, available)
    return [(sharing[0], sharing) for sharing in found.values()]


def _refuse_ambiguous(recipe: Recipe, available: Mapping[str, Any]) -> None:
    """One data identifier names one way of preprocessing, or labeled and unlabeled cases would not fit together."""
    for name in available:
        try:
            resolved = raw.resolve_configuration(recipe.plans, name)
        except UserError:
            continue  # broken, and not what was asked for
        other = Recipe(recipe.plans, name, resolved, recipe.dataset_json, recipe.dataset_folder)
        if other.data_identifier == recipe.data_identifier and other.settings != recipe.settings:
            raise UserError(
                f"the configurations {recipe.configuration_name} and {name} in the plans of {recipe.dataset_folder} "
                f"have the same data_identifier {recipe.data_identifier} but differ in how images are preprocessed; "
                "give one of them a data_identifier of its own and preprocess again"
            )


def _without_raw_images(recipe: Recipe, error: EnvironmentNotReady, log: Log) -> UnlabeledIndex:
    index = UnlabeledIndex.load(recipe.index_path)
    if not index.cases:
        if recipe.folder.is_dir() and any(recipe.folder.iterdir()):
            raise UserError(
                f"{recipe.index_path} is missing, without which {recipe.folder} cannot be used; copy it from where the "
                "cases were preprocessed"
            ) from error
        raise error
    remedy = "preprocess again where the raw images are, and copy the folder and the .jsonl file beside it"
    lost = index.missing_files()
    if lost:
        raise UserError(f"{recipe.folder} lacks files of {raw.name_some(lost)}; {remedy}") from error
    if any(case.settings != recipe.settings for case in index.cases.values()):
        raise UserError(f"the cases in {recipe.folder} were preprocessed with other plans; {remedy}") from error
    log(f"{error}; the {len(index.good)} cases in {recipe.folder} are used without a look at their raw images")
    return index


def _refusal(bad: Mapping[str, str], name: str, command: str) -> str:
    return (
        f"{len(bad)} unlabeled case(s) of {name} cannot be used: {_reasons(bad)}; repair or delete the files and run "
        f"`{command}`, or go without them by `{command} --skip-bad`"
    )


def _none_usable(bad: Mapping[str, str], name: str, command: str) -> str:
    return (
        f"none of the {len(bad)} unlabeled cases of {name} is usable: {_reasons(bad)}; repair or replace the files in "
        f"imagesUn and run `{command}`"
    )


def _reasons(bad: Mapping[str, str]) -> str:
    return raw.name_some(f"{case} ({reason})" for case, reason in bad.items())


def _warnings(index: UnlabeledIndex, recipe: Recipe) -> list[str]:
    """Sentences about cases smaller than the patch, and fewer cases than the batch has samples."""
    patch, batch_size = recipe.configuration["patch_size"], recipe.configuration["batch_size"]
    shapes = index.shapes
    small = [
        case for case, shape in shapes.items() if any(a < b for a, b in zip(shape[-len(patch) :], patch, strict=True))
    ]
    where = f"in configuration {recipe.configuration_name}"
    warnings = []
    if small:
        warnings.append(
            f"{len(small)} of {len(shapes)} unlabeled cases are smaller than the patch {tuple(patch)} {where} and are "
            f"padded: {raw.name_some(small)}"
        )
    if 0 < len(shapes) < batch_size:
        warnings.append(f"there are fewer unlabeled cases ({len(shapes)}) than the batch size {where} ({batch_size})")
    return warnings
