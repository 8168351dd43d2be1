"""The measures of distillation, by the names that they have in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "agreement": Measure(
        "agreement with the teacher", "highest agreement with the teacher", percent=True
    ),
    "cosine": Measure("cosine with the teacher's features", "highest cosine"),
    "kl": Measure("divergence from the teacher", "lowest divergence", higher=False),
    "teacher_top1": Measure("the teacher's accuracy", "highest accuracy", percent=True),
}
