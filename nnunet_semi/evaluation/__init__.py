"""How well predictions match references: overlap, surfaces, landmarks, challenge rules, and how sure a mean is."""

METRICS = {  # on the command line → in summary.json, which nnU-Net begins with Dice and IoU
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "hd": "HD",
    "hd95": "HD95",
    "assd": "ASSD",
}
CHALLENGE_NAMES = ("fugc2025", "flare22", "aicup-stas", "cl-detection2023")
