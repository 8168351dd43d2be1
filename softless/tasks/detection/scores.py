"""The measures of a detection, by the names that they have in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "box_ap": Measure("box AP", "highest box AP", percent=True),
    "box_ap50": Measure("box AP50", "highest box AP50", percent=True),
    "box_ap75": Measure("box AP75", "highest box AP75", percent=True),
    "mask_ap": Measure("mask AP", "highest mask AP", percent=True),
    "mask_ap50": Measure("mask AP50", "highest mask AP50", percent=True),
    "mask_ap75": Measure("mask AP75", "highest mask AP75", percent=True),
}
