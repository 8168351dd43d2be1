"""Slides as bags of features of their tiles: a class, several labels or survival of each patient.

Reaches: AUC over all 58 patients of ucsb_bags, five folds: docs/bags.md.
Takes:   seconds a fold on one CPU core for bags of some tens of tiles; a slide of 10,000 tiles takes
         as long as 300 of those.
Paper:   attention over tiles of Ilse et al. (arXiv:1802.04712) behind a block of
         sequence-normalised attention (arXiv:2406.01314).
Command: softless train --recipe bags --data FEATURES --table slides.csv --folds 5

The rate and the smoothing were chosen on validation patients of ucsb_bags. The epoch is picked by
the validation loss, which all three kinds of labels have.
Survival: --set table.time=days table.event=dead batch_size=64.
"""

from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.bags.settings import BagsSpec


def recipe() -> Recipe:
    return Recipe(
        name="bags",
        summary="slides as bags of features, a class or survival of each patient",
        model=ModelSpec(name="seqnorm_bag_tiny"),
        data=DataSpec(source="folder", in_chans=1, mean=(0.0,), std=(1.0,), val_fraction=0.2),
        table=BagTableSpec(),
        bags=BagsSpec(smoothing=0.1),
        optim=OptimSpec(lr=5e-4, base_batch=None, weight_decay=0.05, clip_grad=3.0),
        schedule=ScheduleSpec(
            epochs=30,
            warmup_epochs=3,
            warmup_lr=1e-5,
            min_lr=1e-6,
            min_steps=90,
            min_epoch_steps=3,
        ),
        batch_size=16,
        metric="loss",
    )
