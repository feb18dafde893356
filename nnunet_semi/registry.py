"""What this project offers, by name: plain strings, so that listing them imports nothing."""

from __future__ import annotations

# class name -> (module it is imported from, what it is)
TRAINERS: dict[str, tuple[str, str]] = {
    "nnUNetTrainerCPS": (
        "nnunet_semi.trainers.nnUNetTrainerCPS",
        "cross pseudo supervision: two networks teach each other on unlabeled images",
    ),
    "nnUNetTrainerCPSStrong": (
        "nnunet_semi.trainers.nnUNetTrainerCPS",
        "CPS with strong views, for unlabeled images as good as the labeled ones",
    ),
    "nnUNetTrainerCPSWeakToStrong": (
        "nnunet_semi.trainers.nnUNetTrainerCPS",
        "CPS in which one network sees a patch undisturbed and the other learns a strong view of it",
    ),
    "nnUNetTrainerCPSOriginal": (
        "nnunet_semi.trainers.nnUNetTrainerCPS",
        "CPS as published by Chen et al. 2021, without the changes for medical images",
    ),
    "nnUNetTrainerCPSUIF": (
        "nnunet_semi.trainers.nnUNetTrainerCPSUIF",
        "CPS on the unlabeled cases on which its two networks agree most, more of them as training goes on",
    ),
    "nnUNetTrainerCPSCutMix": (
        "nnunet_semi.trainers.nnUNetTrainerCPS",
        "CPS on unlabeled patches that are mixed from pairs (CutMix)",
    ),
    "nnUNetTrainerUniMatch": (
        "nnunet_semi.trainers.nnUNetTrainerUniMatch",
        "UniMatch: sure pseudo labels of the weak view, learned on two strong views and with dropped features",
    ),
    "nnUNetTrainerUniMatchClassAdaptive": (
        "nnunet_semi.trainers.nnUNetTrainerUniMatch",
        "UniMatch with a confidence threshold for each class, for rare structures",
    ),
    "nnUNetTrainerUniMatchV2": (
        "nnunet_semi.trainers.nnUNetTrainerUniMatchV2",
        "UniMatch V2: a teacher's pseudo labels, two strong views with complementary dropout",
    ),
    "nnUNetTrainerFixMatch": (
        "nnunet_semi.trainers.nnUNetTrainerUniMatch",
        "sure pseudo labels of the weak view, learned on one strong view; works with any network",
    ),
    "nnUNetTrainerMeanTeacher": (
        "nnunet_semi.trainers.nnUNetTrainerMeanTeacher",
        "Mean Teacher: agree with the moving average of the own weights",
    ),
    "nnUNetTrainerUAMT": (
        "nnunet_semi.trainers.nnUNetTrainerMeanTeacher",
        "Mean Teacher where the teacher is sure (uncertainty-aware, UA-MT)",
    ),
    "nnUNetTrainerBCP": (
        "nnunet_semi.trainers.nnUNetTrainerBCP",
        "bidirectional copy-paste between labeled and unlabeled patches",
    ),
    "nnUNetTrainerCopyPaste": (
        "nnunet_semi.trainers.nnUNetTrainerCopyPaste",
        "boxes of labeled patches in unlabeled ones and the other way round, of which the labeled voxels are learned",
    ),
    "nnUNetTrainerHeatmap": (
        "nnunet_semi.trainers.nnUNetTrainerHeatmap",
        "landmarks: one heatmap each, from exact points, in millimetres",
    ),
    "nnUNetTrainerHeatmapL1": (
        "nnunet_semi.trainers.nnUNetTrainerHeatmap",
        "landmarks with the mean absolute error of the heatmaps as loss",
    ),
    "nnUNetTrainerHeatmapFocal": (
        "nnunet_semi.trainers.nnUNetTrainerHeatmap",
        "landmarks with the focal loss of the published baseline of CL-Detection 2023",
    ),
    "nnUNetTrainerHeatmapMeanTeacher": (
        "nnunet_semi.trainers.nnUNetTrainerHeatmapMeanTeacher",
        "landmarks with few labels: a teacher marks the unlabeled images, and counts by how sure it is",
    ),
    "nnUNetTrainerKeepCheckpoints": (
        "nnunet_semi.trainers.nnUNetTrainerKeepCheckpoints",
        "supervised training that keeps checkpoints of mid-training, by which unlabeled cases are scored",
    ),
}

# challenge name -> (module of its converter, what it is)
DATASETS: dict[str, tuple[str, str]] = {
    "fugc2025": (
        "nnunet_semi.dataset_conversion.fugc2025",
        "cervix in transvaginal ultrasound: two lips, 50 labeled and 450 unlabeled images",
    ),
    "flare22": (
        "nnunet_semi.dataset_conversion.flare22",
        "abdominal CT: 13 organs, 50 labeled and 2000 unlabeled volumes",
    ),
    "cl-detection2023": (
        "nnunet_semi.dataset_conversion.cl_detection2023",
        "lateral X-rays of the head: 38 landmarks in 400 images",
    ),
    "aicup-stas": (
        "nnunet_semi.dataset_conversion.aicup_stas",
        "lung pathology: tumour spread, outlined in LabelMe",
    ),
    "folder": (
        "nnunet_semi.dataset_conversion.folder",
        "images and masks of your own: PNG, JPEG, TIFF, NIfTI, NRRD, MHA; also LabelMe, VOC and 0/255 masks",
    ),
}

# ending of a trainer's name -> what it does; nnunet_semi.discovery.variants makes the classes
ENDINGS: dict[str, str] = {
    "_100epochs": "train for 100 epochs",
    "_50iters": "50 training iterations per epoch, and a fifth of them for validation",
    "_seed3": "seed of every random source",
    "_nomirror": "mirror neither in training nor in prediction, where sides or ends look alike",
}


def as_tree() -> dict[str, dict[str, str]]:
    """Everything by kind and name, for scripts."""
    return {
        "trainers": {name: line for name, (_, line) in TRAINERS.items()},
        "datasets": {name: line for name, (_, line) in DATASETS.items()},
        "endings": dict(ENDINGS),
    }


def as_table() -> str:
    """Everything as text to read, a line each."""
    titles = {
        "trainers": "Trainers: nnUNetv2_train DATASET CONFIG FOLD -tr NAME",
        "datasets": "Datasets: nnunet_semi convert NAME SOURCE",
        "endings": "Endings of any trainer's name, nnU-Net's own too, with any numbers and in any order",
    }
    blocks = []
    for kind, entries in as_tree().items():
        width = max(map(len, entries), default=0)
        lines = [f"  {name:<{width}}  {line}" for name, line in entries.items()]
        blocks += ["\n".join([titles[kind], *lines])] if lines else []
    return "\n\n".join([*blocks, "Example: -tr nnUNetTrainerCPS_100epochs_50iters_seed3"])
