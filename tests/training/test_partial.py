"""Training a part of a model: the head alone, or the head beside low-rank updates of the
attention.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import softless
from softless.convert.parts import projections
from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.layers.lora import LowRank
from softless.models.create import no_weight_decay
from softless.models.partial import heads, rest_backbone, train_heads
from softless.tasks.table import open_task
from softless.training import Recipe, fit, optim
from softless.training.model import build_for, build_model
from tests.training.test_resume import same_run, stop_after

SHORT: dict[str, Any] = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
XCIT = ModelSpec(
    name="xcit_tiny_12_p8_224",
    op="sima",
    args={"embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 1},
)
PARTS: dict[str, dict[str, Any]] = {
    "frozen": {"model.freeze": "backbone"},
    "lora": {"model.lora": 3},
}


@pytest.fixture(params=["vit", "xcit"])
def first(request: pytest.FixtureRequest, tiny: Recipe, tmp_path: Path) -> Recipe:
    """The tiny recipe, started from a finished run of its own model."""
    recipe = tiny if request.param == "vit" else replace(tiny, model=XCIT)
    fit(recipe.with_fields(**SHORT), tmp_path / "first", device="cpu", progress=False)
    return recipe.with_fields(**{"model.weights": str(tmp_path / "first")})


def best(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "best.safetensors")


def test_a_frozen_backbone_stays_to_the_bit(first: Recipe, tmp_path: Path):
    """Weights, and statistics of BatchNorms in XCiT's embedding; the head is another."""
    recipe = first.with_fields(**SHORT, **PARTS["frozen"])
    fit(recipe, tmp_path / "frozen", device="cpu", progress=False)
    before, after = best(tmp_path / "first"), best(tmp_path / "frozen")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(moved) == {"head.bias", "head.weight"}
    whole = first.with_fields(**SHORT)
    fit(whole, tmp_path / "whole", device="cpu", progress=False)
    assert len([n for n, v in best(tmp_path / "whole").items() if not v.equal(before[n])]) > 20


def test_the_optimiser_holds_what_is_trained(first: Recipe):
    layers = len(projections(build_for(open_task(first))))
    assert layers >= 4
    for fields, expected in ((PARTS["frozen"], 2), (PARTS["lora"], 2 + 2 * layers)):
        task = open_task(first.with_fields(**fields))
        model = build_for(task)
        held = [p for g in optim.optimizer(task.recipe, model).param_groups for p in g["params"]]
        assert len(held) == expected
        assert all(parameter.requires_grad for parameter in held)


def test_no_graph_is_made_of_a_frozen_backbone(first: Recipe):
    task = open_task(first.with_fields(**PARTS["frozen"]))
    model: Any = build_for(task)
    learner = task.learner(model).train()
    assert not model.blocks.training
    assert model.head.training
    features = model.forward_features(torch.randn(2, 1, 16, 16))
    assert features.grad_fn is None
    loss = learner(torch.randn(2, 1, 16, 16), torch.rand(2, 3))
    loss.backward()
    assert model.head.weight.grad is not None
    learner.eval()
    assert not model.head.training


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_run_continues_bit_for_bit(
    first: Recipe, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
):
    recipe = first.with_fields(**PARTS[part])
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "cut", device="cpu", progress=False)
    fit(recipe, tmp_path / "whole", device="cpu", progress=False)
    fit(None, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same_run(tmp_path / "whole", tmp_path / "cut")
    weights = [best(tmp_path / name) for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_lora_leaves_an_ordinary_run(first: Recipe, tmp_path: Path):
    alone = {"ema_decay": None, "ema_evaluate": False}  # averages of products have higher ranks
    recipe = first.with_fields(**SHORT, **PARTS["lora"], **alone)
    result = fit(recipe, tmp_path / "lora", device="cpu", progress=False)
    before, after = best(tmp_path / "first"), best(tmp_path / "lora")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    attention = {name for name in moved if ".attn." in name and name.endswith(".weight")}
    assert len(attention) >= 4
    assert moved == attention | {"head.weight", "head.bias"}
    for name in attention:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), atol=1e-5) <= 3
    evaluated = softless.eval(tmp_path / "lora", device="cpu")
    assert evaluated.to_dict()["top1"] == pytest.approx(result.test["top1"])  # type: ignore[index]
    model = softless.create_model(f"local-dir:{tmp_path / 'lora/model'}", pretrained=True)
    torch.testing.assert_close(dict(model.state_dict()), after)


def test_lora_answers_with_its_updates_in_training_and_validation(tiny: Recipe):
    """What is validated is what is trained: the merged weights, of raw and averaged model."""
    task = open_task(tiny.with_fields(**PARTS["lora"], **{"model.weights": None}))
    model = build_for(task)
    assert isinstance(model, LowRank)
    averaged = optim.averaged(task.recipe, model)
    assert averaged is not None
    optimizer = optim.optimizer(task.recipe, model)
    x, y = torch.randn(4, 1, 16, 16), torch.rand(4, 3).softmax(1)
    learner = task.learner(model).train()
    for step in range(3):
        optimizer.zero_grad()
        learner(x, y).backward()
        optimizer.step()
        task.after_step(model, None)  # type: ignore[arg-type]
        averaged.update(model, step)
    model.eval()
    torch.testing.assert_close(task.evaluated(model)(x), model(x))
    restored = copy.deepcopy(averaged.module)
    restored.load_state_dict(averaged.module.state_dict())
    states = [task.evaluated(module).state_dict() for module in (averaged.module, restored)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_has_no_such_part_is_refused(tiny: Recipe, tmp_path: Path):
    convolutions = replace(tiny, model=ModelSpec(name="test_resnet"), drop_path=0.0)
    with pytest.raises(UsageError, match="no linear projection of an attention"):
        fit(convolutions.with_fields(**{"model.lora": 2}), tmp_path / "x", device="cpu")
    with pytest.raises(UsageError, match="rank from 1 to 15"):
        fit(tiny.with_fields(**{"model.lora": 16}), tmp_path / "x", device="cpu")
    with pytest.raises(UsageError, match="has no head that could be trained alone"):
        train_heads(softless.create_model("vit_tiny_patch16_224", depth=1, num_classes=0))


def test_the_head_of_a_distilled_model_is_two_layers():
    model: Any = softless.create_model("deit_tiny_distilled_patch16_224", "sima", depth=1)
    assert list(heads(model)) == ["head", "head_dist"]
    train_heads(model)
    rest_backbone(model.train())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert model.head_dist.training
    assert not model.pos_drop.training


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("vit_tiny_patch16_224", "sima"),
        ("vit_tiny_patch16_224", "soft"),
        ("xcit_tiny_12_p8_224", "sima"),
        ("xcit_tiny_12_p8_224", "soft"),
        ("xcit_tiny_12_p8_224", None),
    ],
)
def test_layer_decay_knows_the_layers_of_exchanged_hosts(tiny: Recipe, name: str, op: str | None):
    """The rate grows by one factor from block to block, for an operator's own tensors too."""
    args: dict = {"depth": 3, "embed_dim": 16, "num_heads": 2}
    args |= {"ratio": 2} if op == "soft" else {}
    args |= {"patch_size": 4} if name.startswith("vit") else {}
    spec = ModelSpec(name=name, op=op, args=args)
    recipe = replace(tiny, model=spec).with_fields(**{"optim.layer_decay": 0.5})
    model = build_model(recipe, 3, 1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {
        names[id(parameter)]: group["lr_scale"]
        for group in optim.optimizer(recipe, model).param_groups
        for parameter in group["params"]
    }
    assert scale.keys() == set(names.values())
    blocks = [{scale[n] for n in scale if n.startswith(f"blocks.{i}.")} for i in range(3)]
    assert [len(values) for values in blocks] == [1, 1, 1]
    low, middle, high = (values.pop() for values in blocks)
    assert middle == 2 * low
    assert high == 2 * middle
    assert {scale[n] for n in scale if n.startswith("patch_embed.")} == {low / 2}
    assert scale["head.weight"] == 1.0
    assert no_weight_decay(model) & scale.keys()
