"""Semi-supervised learning for nnU-Net: trainers that also learn from unlabeled images."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# An installation maps the top-level folders trainers/ and dataset_conversion/ into this package. In a checkout that
# was not installed they lie beside it, and are found through its path.
_beside = Path(__file__).resolve().parent.parent
if (_beside / "trainers").is_dir() and (_beside / "setup.py").is_file():
    __path__.append(str(_beside))
