"""Child processes of a benchmark: nnU-Net's commands in the folders of the benchmark, on cores of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import nnunet_semi
from nnunet_semi.discovery import VARIABLE, extended_search_path
from nnunet_semi.errors import UserError
from nnunet_semi.raw import FOLDERS

CORES = "BENCHMARK_CORES"


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def environment(work: Path, workers: int | None = None, compiled: bool = False) -> dict[str, str]:
    """The variables of a child: nnU-Net's folders inside `work`, and this very copy of nnunet_semi.

    Args:
        workers: augmentation workers of a training; the trainer chooses if not given.
        compiled: let nnU-Net compile its networks.
    """
    copy = str(Path(nnunet_semi.__file__).resolve().parent.parent)
    variables = {
        **os.environ,
        **{name: str(work.resolve() / name) for name in FOLDERS},
        "PYTHONPATH": os.pathsep.join(filter(None, [copy, os.environ.get("PYTHONPATH", "")])),
        VARIABLE: extended_search_path(),
        "OMP_NUM_THREADS": "1",
        "nnUNet_compile": "t" if compiled else "f",
        "nnUNet_def_n_proc": "1",  # each would import torch, to export the one case that a training validates
    }
    variables.pop("nnUNet_n_proc_DA", None)
    return variables if workers is None else {**variables, "nnUNet_n_proc_DA": str(workers)}


def run_child(command: Sequence[str], variables: Mapping[str, str], log: Path, cores: Sequence[int] = ()) -> None:
    """Runs `python children.py COMMAND`, with its output appended to a file.

    Args:
        command: a console script of this environment with its arguments, or 'predict' with those of `predict`.
        cores: those that it may use; all if there are none.

    Raises:
        UserError: it failed; the message names the log file.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    chosen = {CORES: ",".join(map(str, cores))} if cores else {}
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        child = [sys.executable, str(Path(__file__).resolve()), *command]
        done = subprocess.run(
            child, env={**variables, **chosen}, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )
    if done.returncode:
        raise UserError(f"{command[0]} failed with exit code {done.returncode}; its output is in {log}")


def predict(model: str, fold: str, output: str, device: str, mirroring: str, *images: str) -> None:
    """Segments single-channel images with nnU-Net's own predictor and the final checkpoint of a fold."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(len(available_cores()) if device == "cpu" else 1)
    predictor = nnUNetPredictor(
        use_mirroring=mirroring == "True",
        perform_everything_on_device=device == "cuda",
        device=torch.device(device),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(model, (int(fold),), "checkpoint_final.pth")
    Path(output).mkdir(parents=True, exist_ok=True)
    names = [str(Path(output) / Path(image).name.split(".")[0]) for image in images]
    predictor.predict_from_files_sequential([[image] for image in images], names)


def console_script(name: str) -> Callable[[], int | None]:
    """The function behind a command; that of nnunet_semi is found where the package is not installed, too."""
    module, function = "nnunet_semi.cli", "main"
    if name != "nnunet_semi":
        module, _, function = next(iter(entry_points(group="console_scripts", name=name))).value.partition(":")
    return getattr(import_module(module), function)


def main() -> None:
    """Runs what the command line names, as its console script would, and tells the peak of GPU memory."""
    if CORES in os.environ and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in os.environ[CORES].split(",")])
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "predict":
        predict(*sys.argv[1:])
        code = None
    else:
        code = console_script(sys.argv[0])()
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    if cuda is not None and cuda.is_initialized():
        print(f"peak GPU memory: {cuda.max_memory_allocated() / 2**20:.0f} MiB of {cuda.get_device_name()}")
    sys.exit(code)


if __name__ == "__main__":
    main()
