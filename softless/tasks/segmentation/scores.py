"""The measures of a segmentation, by the names that they have in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "miou": Measure("mIoU", "highest mIoU", percent=True),
    "dice": Measure("mean Dice", "highest mean Dice", percent=True),
    "pixel_accuracy": Measure("pixel accuracy", "highest pixel accuracy", percent=True),
}
