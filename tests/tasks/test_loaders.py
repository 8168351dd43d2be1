"""What every task hands to its loader's workers can be pickled, as it is where processes are
spawned.
"""

import pickle
from pathlib import Path

import pytest

from softless.recipes import RECIPES, get_recipe
from softless.tasks.table import TASKS, open_task

OF = {get_recipe(name).task: name for name in sorted(RECIPES, reverse=True)}


# both of its models are built in Python: softless.recovery.distil makes its recipe
IN_PYTHON = {"distillation"}


def test_every_task_has_a_recipe():
    assert set(OF) == set(TASKS) - IN_PYTHON


@pytest.mark.parametrize("name", [*OF.values(), "coco_sima_maskrcnn", "medmnist", "folder"])
def test_loaders_can_be_pickled(name: str, tmp_path: Path):
    task = open_task(get_recipe(name).quick(tmp_path))
    for loader in (task.train_loader(0, 1), task.eval_loader(task.splits.val, 0, 1)):
        sent = (loader.dataset, loader.collate_fn, loader.worker_init_fn)
        dataset, collate, _ = pickle.loads(pickle.dumps(sent))
        place = next(iter(loader.batch_sampler or loader.sampler))
        assert collate([dataset[index] for index in place]) is not None
