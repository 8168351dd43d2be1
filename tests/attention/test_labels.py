"""Doors with labels: what an operator takes stands where one looks for it."""

import pytest

import softless
from softless import OPERATORS, UsageError


@pytest.mark.parametrize("name", OPERATORS)
def test_list_tells_all_about_an_operator(name: str) -> None:
    """Options with defaults, source, cost and every claim."""
    record, told = OPERATORS[name], str(softless.list("operators", name))
    for word in (
        record.summary,
        record.formula,
        record.paper,
        record.title,
        "multiply-adds",
        record.resolution,
        record.normalises,
    ):
        assert word in told
    for option, rule in record.options.items():
        assert f"option {option}" in told
        assert repr(rule.default) in told
    assert (record.streaming.holds if record.streaming else record.no_stream) in told


@pytest.mark.parametrize("name", OPERATORS)
def test_help_of_a_class_lists_its_options(name: str) -> None:
    record = OPERATORS[name]
    told = " ".join(getattr(softless, record.title).__doc__.split())
    assert record.summary in told
    for option, rule in record.options.items():
        assert f" {option}: {rule.says}. Takes {rule.values}; {rule.default!r} by default. " in told


@pytest.mark.parametrize(
    ("model", "options", "near"),
    [
        ("sima_deit_tiny_patch16_224", {"ordr": "tokens"}, "order"),
        ("deit_tiny_patch16_224", {"op": "sima", "token_scal": "tokens"}, "token_scale"),
        ("sima_xcit_nano_12_p16_224", {"token_scal": "tokens"}, "token_scale"),
        ("sima_cvt_13_224", {"img_siz": 64}, "img_size"),
        ("soft_tiny_224", {"samplin": "pool"}, "sampling"),
        ("deit_tiny_patch16_224", {"num_clases": 3}, "num_classes"),
    ],
)
def test_a_misspelt_option_of_a_model(model: str, options: dict[str, object], near: str) -> None:
    """Once timm's TypeError."""
    wrong = next(name for name in options if name != "op")
    with pytest.raises(
        UsageError,
        match=rf"no option of '{model}'.* named '{wrong}'\. Did you mean '{near}'\? Known: ",
    ) as caught:
        softless.create_model(model, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
