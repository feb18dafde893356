"""The one module that nnU-Net imports from the folder in nnUNet_extTrainer: it asks the installed package by name.

nnU-Net throws it out of sys.modules after the search. The classes it hands out live elsewhere, so that they keep their
identity and can be pickled.
"""

from __future__ import annotations


def __getattr__(name: str) -> type:
    from nnunet_semi.discovery import find_trainer

    return find_trainer(name)
