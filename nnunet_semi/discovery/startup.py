"""What happens at interpreter start from Python 3.15 on (`nnunet_semi.start`); before, a line in `nnunet_semi.pth`."""

from __future__ import annotations

import os


def append_folder() -> None:
    """Appends the shim's folder to nnUNet_extTrainer; not where NNUNET_SEMI_NO_HOOK is set, and not twice."""
    from nnunet_semi.discovery import extended_search_path

    if os.environ.get("NNUNET_SEMI_NO_HOOK", "0") in ("", "0"):
        os.environ["nnUNet_extTrainer"] = extended_search_path()
