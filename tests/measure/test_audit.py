"""The audit: every kind seen, in its place, in modules and in exported graphs; what is per grid
apart; and an exit code that says it.
"""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import softless
from softless import DataError, UsageError
from softless.cli.main import main
from softless.measure import Audit, audit
from tests.measure.test_cost import KINDS_OF_CALLS


class Calls(nn.Module):
    """A function behind a linear layer, at a path of its own."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = lambda x: call(x.flatten(1).view(-1, 4))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image * self.scale)


@pytest.mark.parametrize(("call", "kinds"), KINDS_OF_CALLS)
@pytest.mark.parametrize("exported", [False, True], ids=["module", "graph"])
def test_every_kind_is_seen_in_modules_and_graphs(
    call: Any, kinds: dict[str, int], exported: bool
) -> None:
    model = Calls(call).eval()
    image = torch.rand(1, 1, 3, 4)
    found = audit(
        torch.export.export(model, (image,)) if exported else model, None if exported else (1, 3, 4)
    )
    assert dict(found.kinds) == kinds
    assert found.exp_free == (not kinds)
    assert found.per_grid == {}
    if not exported:
        assert {one.where for one in found.findings} <= {"inner"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sima_deit_small_patch16_224", {"act": "relu"}),
        ("sima_xcit_small_12_p16_224", {"act": "hard_swish"}),
        ("sima_cvt_13_224", {"act": "relu"}),
        ("soft_pyramid_tiny_224", {"op": "sima", "last_stage": "sima", "act": "relu"}),
    ],
)
def test_strictly_exp_free(name: str, options: dict[str, Any]) -> None:
    found = audit(softless.create_model(name, **options))
    assert found.kinds == {}
    assert found.exp_free
    assert found.roots > 0
    assert found.divisions > 0
    # its position table
    assert found.per_grid.keys() == ({"power", "trigonometric"} if "xcit" in name else set())
    assert str(found).startswith("exp-free: ")


def test_soft_says_where_its_exponentials_are_the_last_stage_included() -> None:
    found = audit(softless.create_model("soft_tiny_224"))
    places = {(one.kind, one.where) for one in found.findings}
    assert {
        ("exp", "stage0.blocks.0.attn"),
        ("softmax", "stage3.blocks.1.attn"),
        ("gelu", "stage3.blocks.0.mlp.act"),
    } <= places
    assert found.kinds["softmax"] == 2 * 16 * 50 * 50
    assert not found.exp_free
    assert found.exit_code == 1
    shown = str(found)
    assert "stage3.blocks.*.attn  (2 places)" in shown
    assert shown.startswith("not exp-free")


def test_the_audit_counts_what_cost_counts() -> None:
    for name in ("deit_tiny_patch16_224", "softnorm_tiny_224", "xcit_nano_12_p16_224"):
        model = softless.create_model(name)
        found, counted = audit(model), softless.cost(model)
        both = {
            kind: found.kinds.get(kind, 0) + found.per_grid.get(kind, 0)
            for kind in {*found.kinds, *found.per_grid}
        }
        assert both == counted.transcendentals


def test_tables_are_per_grid_and_what_touches_the_image_is_not() -> None:
    class Table(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            place = torch.arange(image.shape[-1]).float()
            table = place.cos()  # of the size alone
            mixed = image.clone()
            mixed += table
            return mixed.sin() + (image[..., :1] * 0 + place).exp()

    for found in (
        audit(Table(), (1, 2, 8)),
        audit(torch.export.export(Table(), (torch.rand(1, 1, 2, 8),))),
    ):
        assert found.per_grid == {"trigonometric": 8}
        assert found.kinds == {"exp": 16, "trigonometric": 16}


def test_an_exported_model_is_as_free_as_the_model(tmp_path: Any) -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", act="relu", depth=1).eval()
    image = torch.randn(2, 3, 64, 64)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    program = torch.export.export(model, (image,), dynamic_shapes=[batch])
    torch.export.save(program, tmp_path / "model.pt2")
    assert audit(tmp_path / "model.pt2").exp_free
    wrong = torch.export.export(
        softless.create_model("deit_tiny_patch16_224", op="softmax", depth=1).eval(),
        (image,),
        dynamic_shapes=[batch],
    )
    found = audit(wrong)
    assert found.dynamic
    assert found.kinds == {"gelu": 2 * 17 * 768, "softmax": 2 * 3 * 17 * 17}
    assert "any size" in str(found)
    with pytest.raises(UsageError, match="says its own input size"):
        audit(wrong, 64)


def test_what_cannot_be_looked_into_is_not_called_free() -> None:
    @torch.library.custom_op("softless_tests::hidden", mutates_args=())
    def hidden(x: Tensor) -> Tensor:
        return x.exp()

    @hidden.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    found = audit(Calls(hidden), (1, 3, 4))
    assert found.kinds == {"opaque": 1}
    assert not found.exp_free


def test_the_model_is_left_as_it_was() -> None:
    model = softless.create_model("deit_tiny_patch16_224", op="performer", depth=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, 32)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_from_the_command_line(tmp_path: Any, capsys: Any) -> None:
    assert main(["audit", "sima_deit_tiny_patch16_224", "--act", "relu", "--input-size", "64"]) == 0
    assert "exp-free" in capsys.readouterr().out
    assert main(["audit", "sima_deit_tiny_patch16_224", "--input-size", "64"]) == 1
    assert "blocks.*.mlp.act  (12 places)" in capsys.readouterr().out
    assert main(["audit", str(tmp_path / "none.pt2")]) == 2
    capsys.readouterr()
    (tmp_path / "broken.pt2").write_bytes(b"not a program")
    for words in (
        [str(tmp_path / "broken.pt2")],
        ["x.pt2", "--act", "relu"],
        ["sima_deit_tiny_patch16_224", "--height", "64"],
    ):
        assert main(["audit", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="not an exported program"):
        audit(tmp_path / "broken.pt2")


def test_fused_attention_counts_as_its_pairs() -> None:
    class Fused(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            x = image.flatten(2).mT[:, None]
            return F.scaled_dot_product_attention(x, x, x)

    found: Audit = audit(Fused(), (1, 3, 4))
    assert found.kinds == {"softmax": 144}


@pytest.mark.parametrize("look", [softless.audit, softless.cost])
@pytest.mark.parametrize("name", ["levit_128s", "convit_tiny", "tiny_vit_5m_224"])
def test_a_model_that_notes_tables_of_a_pass_works_afterwards(name: str, look: Any) -> None:
    """timm's attention keeps its biases by device, or its positions by size."""
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    held = {path: id(table) for path, table in model.named_buffers()}
    look(model)
    assert {path: id(table) for path, table in model.named_buffers()} == held
    torch.manual_seed(0)
    with torch.no_grad():
        answer = model(x)
        assert torch.equal(answer, timm.create_model(name).eval()(x))
    look(model)  # with tables that are full
    with torch.no_grad():
        assert torch.equal(model(x), answer)
