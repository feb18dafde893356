"""The verbs of the command line: what each makes, its flags (nnU-Net's own), and the call of the function behind it."""

from __future__ import annotations

from nnunet_semi.verbs import datasets, environment, filtering, models, predictions, selftraining
from nnunet_semi.verbs.verb import Verb

VERBS: dict[str, Verb] = {
    **environment.VERBS,
    **datasets.VERBS,
    **filtering.VERBS,
    **selftraining.VERBS,
    **models.VERBS,
    **predictions.VERBS,
}
