"""Several labels an image, each there or not, in one npz file as ChestMNIST has them.

Reaches: not measured: no data set with several labels lies at hand.
         `tests/tasks/multilabel/test_multilabel.py` learns four labels of generated images, and its AUC is
         scikit-learn's.
Takes:   as long as `medmnist` on as many images of the same size.
Paper:   MedMNIST v2 (Yang et al., Scientific Data 2023); host and attention are those of
         `medmnist`.
Command: softless train --recipe multilabel --data chestmnist.npz

`medmnist` itself takes such a file too, and says so; a table of several labels goes with `--table`.
The best epoch is the one with the highest mean AUC. Both values of a label weigh alike in the loss.
"""

from dataclasses import replace

from softless.experiment.recipe import Recipe
from softless.recipes import medmnist
from softless.tasks.multilabel.settings import MultilabelSpec


def recipe() -> Recipe:
    return replace(
        medmnist.recipe(),
        name="multilabel",
        summary="images with several labels each (npz as ChestMNIST), binary cross-entropy",
        multilabel=MultilabelSpec(),
        metric="auc",
    )
