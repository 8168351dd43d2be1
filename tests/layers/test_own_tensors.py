"""An operator's own tensors in a module: parameters or buffers, drawn anew when it is time, the
same after loading.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softless.attention import OPERATORS
from softless.attention.learned import given_or_starting
from softless.attention.options import Learned, Option, Sizes
from softless.errors import UsageError
from softless.experiment.recipe import Recipe
from softless.layers import Attention
from softless.layers.own_tensors import OwnTensors, stepped
from softless.training import optim

EVERY = Option(
    default=3,
    says="steps",
    accepts=lambda value: isinstance(value, int),
    values="a number of steps",
)


def drawn(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator)


RECORD = replace(
    OPERATORS["sima"],
    options={"every": EVERY, "wide": replace(EVERY, default=4)},
    learned={
        "directions": Learned(
            lambda sizes: (sizes.options["wide"], sizes.head_dim),
            drawn,
            trained=False,
            redraw_every="every",
        ),
        "slope": Learned(lambda sizes: (sizes.heads, 1, 1), 2.0),
        "rows": Learned(
            lambda sizes: (sizes.tokens or 0, 2), drawn, when=lambda options: options["wide"] > 4
        ),
    },
)


def own(**options: Any) -> Any:
    return OwnTensors(RECORD, 3, 8, options, 20)  # untyped: its tensors are attributes


def test_parameters_and_buffers() -> None:
    module = own()
    assert {name: tuple(x.shape) for name, x in module.named_parameters()} == {"slope": (3, 1, 1)}
    assert bool((module.slope == 2).all())
    assert {name for name, _ in module.named_buffers()} == {"directions", "age"}
    assert set(module()) == {"directions", "slope"}
    assert {name: tuple(x.shape) for name, x in own(wide=5)().items()} == {
        "directions": (5, 8),
        "slope": (3, 1, 1),
        "rows": (20, 2),
    }
    assert own().to(torch.float64)()["directions"].dtype == torch.float64


def test_drawn_anew_after_so_many_steps() -> None:
    """A pass changes nothing; steps count, and the next draw follows from the last, so that ranks
    with the same draw stay the same.
    """
    module, other_rank = own(), own()
    other_rank.load_state_dict(module.state_dict())
    first = module.directions.clone()
    for _ in range(5):
        module()
    assert int(module.age) == 0
    stepped(module)
    stepped(module)
    assert module.directions.equal(first)
    stepped(module)
    assert not module.directions.equal(first)
    assert bool((module.slope == 2).all())
    torch.manual_seed(77)
    for _ in range(3):
        stepped(other_rank)
    assert other_rank.directions.equal(module.directions), "whatever torch's generator holds"
    second = module.directions.clone()
    for _ in range(3):
        stepped(module)
    assert not module.directions.equal(second)
    never = own(every=0)
    held = never.directions.clone()
    for _ in range(10):
        stepped(never)
    assert never.directions.equal(held)


def test_a_loaded_module_goes_on_counting() -> None:
    module, again = own(), own()
    stepped(module)
    stepped(module)
    again.load_state_dict(module.state_dict())
    assert again.directions.equal(module.directions)
    held = again.directions.clone()
    stepped(again)
    assert not again.directions.equal(held)


def test_averaged_weights_take_random_tensors_over() -> None:
    """The mean of two draws is no draw; trained tensors are averaged."""
    model = nn.ModuleDict({"own": own(), "linear": nn.Linear(2, 2)})
    ema: Any = optim.averaged(Recipe(name="x", summary="x", ema_decay=0.9), model)
    module: Any = model["own"]
    with torch.no_grad():
        module.slope.fill_(3.0)
        module.redraw()
        module.age.fill_(7)
    ema.update(model)
    theirs: Any = ema.module["own"]
    assert theirs.directions.equal(module.directions)
    assert int(theirs.age) == 7
    assert theirs.slope.flatten()[0].item() == pytest.approx(2.1)


def test_attend_without_tensors_takes_those_of_a_new_module() -> None:
    """Repeatable: the random ones come from seed 0; some of the tensors are an error."""
    k = torch.randn(1, 3, 20, 8)
    first, second = (given_or_starting(RECORD, None, {}, k, k) for _ in range(2))
    assert set(first) == {"directions", "slope"}
    assert all(first[name].equal(second[name]) for name in first)
    assert given_or_starting(RECORD, None, {"wide": 5}, k, k)["rows"].shape == (20, 2)
    with pytest.raises(UsageError, match="learned tensors: directions, slope; got slope"):
        given_or_starting(RECORD, {"slope": first["slope"]}, {}, k, k)
    assert given_or_starting(OPERATORS["sima"], None, {}, k, k) == {}


def test_a_module_that_was_not_told_its_tokens() -> None:
    record = RECORD.changed(needs={"tokens": lambda options: options["wide"] > 4})
    module = Attention(24, 3, op=record, wide=5)
    with pytest.raises(UsageError, match=r"learns a row per token.*with_options\(tokens=197\)"):
        module.extras(20)
    module.set_tokens(20)
    assert module.extras(20)["learned"]["rows"].shape == (20, 2)
    rows = module.learned.rows
    module.set_tokens(30)
    assert module.learned.rows is rows, "told once, they stay"
    assert Attention(24, 3, op=record, wide=5, tokens=9).extras(9)["learned"]["rows"].shape == (
        9,
        2,
    )
    assert Sizes(1, 2, {}).tokens is None
