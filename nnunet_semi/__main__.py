"""`python -m nnunet_semi`, for when the command itself is not on the PATH."""

from __future__ import annotations

import sys

from nnunet_semi.cli import main

if __name__ == "__main__":
    sys.exit(main())
