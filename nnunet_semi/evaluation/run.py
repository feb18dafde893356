"""`nnunet_semi evaluate`: the cases of two folders, scored one by one in as many processes as there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation import METRICS
from nnunet_semi.evaluation.cases import CaseScores, Settings, Task, score_case
from nnunet_semi.evaluation.challenges import CHALLENGES
from nnunet_semi.evaluation.classes import Classes, find_classes
from nnunet_semi.evaluation.overlap import Label, members
from nnunet_semi.evaluation.result import RATIOS, SUMMARY, Evaluation, output_files
from nnunet_semi.labelmaps.cases import label_files, matching_cases
from nnunet_semi.pool import for_each
from nnunet_semi.raw import name_some


def evaluate(
    reference: Path | str,
    prediction: Path | str,
    metrics: Sequence[str] = ("dice",),
    *,
    challenge: str | None = None,
    labels: Sequence[Label] | None = None,
    tolerance: float = 2.0,
    milliseconds: float | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    chill: bool = False,
    num_processes: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores the predictions in a folder against the references in another.

    Where a class is empty in both files of a case, nothing is defined. Where it is empty in one, Dice, IoU and NSD are
    0 and distances are not defined. What is not defined is NaN, is left out of every mean, and is counted.

    Args:
        reference: folder, or a single file.
        prediction: folder, or a single file; files belong together by their names without ending.
        metrics: of dice, iou, nsd, hd, hd95 and assd.
        challenge: follow the rules of fugc2025, flare22 or aicup-stas instead; `metrics`, `labels` and `tolerance` are
            then the challenge's.
        labels: what to score, numbers and regions as tuples; by default what dataset.json says, else all that occurs.
        tolerance: of the NSD, in mm.
        milliseconds: run time per image, for the score of FUGC.
        output: folder for summary.json and cases.csv, or the .json file itself; nothing is written without it.
        overwrite: replace them if they are there.
        chill: leave out references without prediction, as nnU-Net's own evaluation does with --chill.
        num_processes: 1 works in this process; None stands for nnU-Net's default, at most one per core.
        progress: show a bar on a terminal.

    Raises:
        WrongUse: an argument cannot mean anything.
        UserError: files are missing, unreadable, or not on one grid; the message names all of them.
    """
    reference, prediction = Path(reference), Path(prediction)
    if milliseconds is not None and challenge != "fugc2025":
        raise WrongUse("got a run time, which only fugc2025 scores; leave --runtime out, or pass --challenge fugc2025")
    settings = _settings(reference, prediction, metrics, challenge, labels, tolerance)
    if output is not None:
        output_files(Path(output), SUMMARY, overwrite)  # refuses before the work, not after it
    files = matching_cases([reference, prediction], others_may_have_more=True, chill=chill)
    tasks = [Task(case, first, second, settings) for case, (first, second) in files.items()]
    scored = {result.case: result for _, result in for_each(score_case, tasks, num_processes, "evaluate", progress)}
    problems = [result.problem for result in scored.values() if result.problem]
    if problems:
        raise UserError(f"{len(problems)} of {len(scored)} cases cannot be scored: {name_some(problems, 10)}")
    cases = [scored[case] for case in files]
    evaluation = _evaluation(cases, settings, milliseconds, _notes(cases, reference, prediction))
    if output is not None:
        evaluation.write(Path(output), overwrite)
    return evaluation


def _settings(
    reference: Path,
    prediction: Path,
    metrics: Sequence[str],
    challenge: str | None,
    labels: Sequence[Label] | None,
    tolerance: float,
) -> Settings:
    if challenge is not None:
        if challenge not in CHALLENGES:
            hint = "; landmarks are scored by `evaluate_landmarks`" if challenge == "cl-detection2023" else ""
            raise WrongUse(f"got the challenge {challenge!r}; expected one of {', '.join(CHALLENGES)}{hint}")
        if labels is not None:
            raise WrongUse(
                f"got labels together with a challenge; {challenge} says itself what is scored, leave -l out"
            )
        names = CHALLENGES[challenge].names
        known = frozenset(number for label in names for number in members(label)) | {0}
        return Settings(Classes(names, source=challenge, known=known), challenge=challenge)
    wrong = [name for name in metrics if name not in METRICS]
    if wrong or not metrics:
        raise WrongUse(f"got the metrics {', '.join(wrong) or 'none'}; expected some of {', '.join(METRICS)}")
    if not tolerance > 0:
        raise WrongUse(f"got the tolerance {tolerance}; expected millimetres above 0")
    return Settings(find_classes(reference, prediction, labels), tuple(dict.fromkeys(metrics)), tolerance)


def _evaluation(
    cases: Sequence[CaseScores], settings: Settings, milliseconds: float | None, notes: Sequence[str]
) -> Evaluation:
    names = settings.classes.names
    if names is None:
        found = {label for case in cases for label in case.metrics}
        names = dict.fromkeys(sorted(found, key=members), "")
    if not names:
        raise UserError(f"no file holds any label but 0, such as {cases[0].reference}; name what to score with -l")
    if settings.challenge is None:
        about: dict[str, Any] = {"classes": settings.classes.source, "tolerance": settings.tolerance}
        means = {METRICS[name]: tuple(names) for name in settings.metrics}
        cases = [case.filled(names, means) for case in cases]
        return Evaluation(cases, names, means, about, notes=notes)
    rules = CHALLENGES[settings.challenge]
    about = {"challenge": settings.challenge} | ({} if milliseconds is None else {"milliseconds": milliseconds})
    scored = publish(Evaluation(cases, names, rules.means, about, notes=notes))
    return replace(scored, notes=[*notes, *_undefined(scored)])


def publish(evaluation: Evaluation) -> Evaluation:
    """With what its challenge publishes about its cases; itself where there is no challenge."""
    if "challenge" not in evaluation.settings:
        return evaluation
    averages = {metric: statistic.mean for metric, statistic in evaluation.overall.items()}
    overall = CHALLENGES[evaluation.settings["challenge"]].overall
    scores = [case.metrics for case in evaluation.cases]
    return replace(evaluation, challenge=overall(scores, averages, evaluation.settings.get("milliseconds")))


def _undefined(found: Evaluation) -> list[str]:
    """What the mean of a distance leaves out, which a prediction gains by that finds nothing."""
    return [
        f"{count} values of {metric} are not defined, because a class is empty in one of the two files, and are left "
        "out of its mean; the rules do not say what they count"
        for metric, labels in found.means.items()
        if metric not in RATIOS and (count := sum(found.undefined(label)[1] for label in labels))
    ]


def _notes(cases: Sequence[CaseScores], reference: Path, prediction: Path) -> list[str]:
    """What is probably not meant so: labels that no class has, and predictions that nobody asked for."""
    notes = []
    unknown = Counter(label for case in cases for label in case.unknown)
    if unknown:
        labels = name_some((f"{label} (in {count} of {len(cases)} cases)" for label, count in unknown.items()), 5)
        notes.append(f"there are labels that no class has, they are not scored: {labels}")
    if reference.is_dir() and prediction.is_dir():
        scored = {case.case for case in cases}
        references, predictions = (len(label_files(folder).keys() - scored) for folder in (reference, prediction))
        if references:
            notes.append(f"{references} references have no prediction and were left out")
        if predictions:
            notes.append(f"{predictions} predictions have no reference and were left out")
    return notes
