"""Measures trainers on real data: few labeled cases, the rest of the training cases unlabeled, held-out cases scored.

python benchmarks/protocol.py --data DATA --task la2d --work WORK --trainers nnUNetTrainer nnUNetTrainerCPS \\
    --labeled 2 --seeds 0 1 2 --epochs 25 --iterations 50 --all-labels

Every run is a training by nnUNetv2_train with the trainer's name and its length and seed, such as
nnUNetTrainerCPS_25epochs_50iters_seed0, and a prediction with checkpoint_final; Dice is taken on the original grid.
Runs that WORK/results.csv holds already are skipped, so that the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cases import ALL, TASKS, TESTS
from children import available_cores
from nnunet_semi.errors import UserError
from prepare import Preparation
from results import SUPERVISED, append_row, is_done, markdown, read_rows
from runs import Options, Run

STAGES = ("prepare", "run", "table")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds la/, hippocampus/ and acdc/")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets, models, logs and results.csv")
    parser.add_argument("--trainers", nargs="+", default=[SUPERVISED, "nnUNetTrainerCPS"], metavar="NAME")
    parser.add_argument("--labeled", nargs="+", type=int, default=[2], metavar="N", help="cases (acdc2d: patients)")
    parser.add_argument("--all-labels", action="store_true", help=f"{SUPERVISED} with all training cases labeled, too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=50, help="per epoch")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage of the network")
    parser.add_argument("--batch", type=int, help="labeled patches per step (default: the task's, 8 in 2D and 2 in 3D)")
    parser.add_argument("--test", choices=TESTS, default=TESTS[0], help="tuning: held-out training cases instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at the same time; they share cores")
    parser.add_argument("--workers", type=int, metavar="N", help="augmentation workers per training")
    parser.add_argument("--compile", action="store_true", help="let nnU-Net compile the networks")
    parser.add_argument("--ending", default="", help="of the name of every trainer, such as _nomirror")
    parser.add_argument("--no-mirroring", action="store_true", help="predict without nnU-Net's mirrored copies")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="do only this (default: all)")
    return parser.parse_args(arguments)


def planned_runs(args: argparse.Namespace) -> list[Run]:
    """All runs of a command line; seed by seed, so that a stop leaves a table that is complete for some seeds."""
    task = TASKS[args.task]
    preparation = Preparation(args.data, args.work, task, args.test, args.width, args.batch or task.batch_size)
    options = Options(
        args.epochs,
        args.iterations,
        args.device,
        args.workers,
        args.compile,
        mirroring=not args.no_mirroring,
        ending=args.ending,
    )
    groups = [(trainer, labeled) for labeled in args.labeled for trainer in args.trainers]
    if args.all_labels:
        groups.append((SUPERVISED, ALL))
    return [Run(preparation, options, *group, seed) for seed in args.seeds for group in groups]


def execute(runs: Sequence[Run], results: Path, jobs: int) -> int:
    """Does the runs that the results do not hold yet, some at the same time; gives the number of those that failed."""
    left = [run for run in runs if not is_done(read_rows(results), run.identity())]
    print(f"{len(left)} of {len(runs)} runs to do", file=sys.stderr)
    cores, lock, failed = shares(available_cores(), jobs), threading.Lock(), 0

    def one(run: Run) -> str:
        mine = cores.get()
        try:
            row = run.execute(mine)
        finally:
            cores.put(mine)
        with lock:
            append_row(results, row)
        return f"{run.trainer_name}, {run.labeled} labeled: Dice {row['dice']:.3f}, trained {row['train_seconds']} s"

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(one, run) for run in left]):
            try:
                print(future.result(), file=sys.stderr, flush=True)
            except UserError as problem:
                failed += 1
                print(f"protocol.py: {problem}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no further run starts
    return failed


def shares(cores: Sequence[int], jobs: int) -> queue.SimpleQueue[list[int]]:
    """The cores, dealt out to the jobs; more jobs than cores share single ones."""
    dealt: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for job in range(jobs):
        dealt.put(list(cores[job::jobs]) or [cores[job % len(cores)]])
    return dealt


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; gives the exit code, as the commands of nnunet_semi do."""
    try:
        return run_stages(parse(arguments))
    except UserError as problem:
        print(f"protocol.py: {problem}", file=sys.stderr)
        return problem.exit_code


def run_stages(args: argparse.Namespace) -> int:
    """Prepares, runs and prints the table, as far as the stages ask for it; 1 if a run failed."""
    runs, results, failed = planned_runs(args), args.work / "results.csv", 0
    if "prepare" in args.stage:
        runs[0].preparation.prepare([*args.labeled, *([ALL] if args.all_labels else [])])
    if "run" in args.stage:
        failed = execute(runs, results, args.jobs)
    if "table" in args.stage:
        print(markdown(read_rows(results)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
