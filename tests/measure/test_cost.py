"""Counts: the published sizes of every model, and the meters on cases small enough to count by
hand.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import softless
from softless.attention import inverse as inverses
from softless.measure import TranscendentalCounter, cost

# parameters and 10^9 multiply-adds at 224 x 224: sima.md sections 5 and 6, hosts.md
PUBLISHED = {
    "sima_deit_tiny_patch16_224": (5_717_416, 1.133),
    "sima_deit_small_patch16_224": (22_050_664, 4.357),
    "sima_deit_base_patch16_224": (86_567_656, 17.081),
    "sima_nano_12_p16": (3_053_176, 0.557),
    "sima_tiny_12_p16": (6_716_224, 1.245),
    "sima_small_12_p16": (26_253_208, 4.853),
    "sima_tiny_24_p16": (12_116_800, 2.336),
    "sima_small_24_p16": (47_671_192, 9.118),
    "sima_medium_24_p16": (84_395_560, 16.186),
    "sima_large_24_p16": (189_095_752, 36.018),
    "sima_nano_12_p8": (3_048_968, 2.159),
    "sima_tiny_12_p8": (6_706_456, 4.829),
    "sima_small_12_p8": (26_212_936, 18.849),
    "sima_tiny_24_p8": (12_107_032, 9.196),
    "sima_small_24_p8": (47_630_920, 35.908),
    "sima_medium_24_p8": (84_323_432, 63.756),
    "sima_large_24_p8": (188_932_264, 141.881),
    "sima_xcit_tiny_20_p16_224": (10_316_608, 1.972),
    "cvt_13_224": (19_997_480, 4.566),
    "sima_cvt_13_224": (19_997_480, 4.159),
    "cvt_21_224": (31_622_696, 7.178),
    "deit_tiny_patch16_224": (5_717_416, 1.254),
    "deit_small_patch16_224": (22_050_664, 4.599),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):  # sizes alone: no weights are drawn
        model = softless.create_model(name)
    counted = cost(model, 224)
    parameters, gmacs = PUBLISHED[name]
    assert counted.parameters == parameters
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=5e-3)
    assert counted.flops == 2 * counted.macs


# soft.md section 2: parameters, and 10^9 multiply-adds in the order of the code without those of
# the inverse; heads of its three stages
SOFT = {
    "tiny": (13_069_056, 1.969, (2, 2 * 4, 3 * 10)),
    "small": (24_110_092, 3.410, (2, 3 * 4, 7 * 10)),
    "small_code": (38_858_462, 6.505, (2, 3 * 4, 20 * 10)),
    "medium": (45_812_707, 7.526, (2, 3 * 4, 29 * 9)),
    "large": (64_700_646, 11.425, (2, 3 * 4, 40 * 10)),
    "huge": (87_108_273, 16.278, (2, 5 * 4, 49 * 11)),
}


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=[pytest.mark.soak] if size in {"small_code", "medium", "large", "huge"} else [],
        )
        for size in SOFT
    ],
)
def test_published_sizes_of_soft(size: str) -> None:
    parameters, gmacs, heads = SOFT[size]
    with torch.device("meta"):
        published = softless.create_model(f"soft_{size}_224", parity=True)
    counted = cost(published, 224)
    assert counted.parameters == parameters
    inverse = inverses.PUBLISHED_PRODUCTS[0] * 49**3 * sum(heads)
    assert (counted.macs - inverse) / 1e9 == pytest.approx(gmacs, rel=5e-3)
    if size == "tiny":
        ours = cost(softless.create_model("soft_tiny_224"))
        assert ours.macs < counted.macs - inverse  # P^T (A^-1 (P v)), and no product in a Cholesky


def test_xcit_keeps_its_size_but_for_the_temperatures() -> None:
    xca, sima = (
        cost(softless.create_model("xcit_small_12_p16_224", op=op)) for op in ("xca", "sima")
    )
    assert xca.parameters == 26_253_304 == sima.parameters + 12 * 8
    assert xca.macs / 1e9 == pytest.approx(4.796, rel=5e-3)
    assert xca.exps == 221_184 + 3_152  # linear_attention.md: XCA's, and class attention's
    assert sima.exps == 0


def test_exponentials_of_deit_small() -> None:
    """Attention and GELU apart, neither hidden; the fused kernel counts as what it computes
    (linear_attention.md).
    """
    softmax, sima = (
        cost(softless.create_model(name))
        for name in ("deit_small_patch16_224", "sima_deit_small_patch16_224")
    )
    assert softmax.exps == 2_794_248
    assert sima.exps == 0
    assert sima.activation_exps == softmax.activation_exps == 12 * 197 * 1536
    assert softmax.transcendentals == {"gelu": 3_631_104, "softmax": 2_794_248}
    assert (
        cost(softless.create_model("sima_deit_small_patch16_224", act="relu")).transcendentals == {}
    )


def test_cost_at_other_sizes() -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", in_chans=1)
    for given, size in (
        (None, (1, 224, 224)),
        (64, (1, 64, 64)),
        ((32, 96), (1, 32, 96)),
        ((1, 32, 96), (1, 32, 96)),
    ):
        assert cost(model, given).input_size == size
    big = cost(model, 8192)  # 262,145 tokens: counted, not computed
    assert big.exps == 0
    assert big.macs > 200 * cost(model).macs
    with pytest.raises(softless.UsageError, match="multiples of 16"):
        cost(model, 100)
    with pytest.raises(softless.UsageError, match="give a side"):
        cost(model, (1, 2, 3, 4))


def test_the_model_is_left_as_it_was() -> None:
    model = softless.create_model("sima_xcit_tiny_12_p16_224", depth=1).train()
    next(model.parameters()).requires_grad = False
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model, 32)
    assert model.training
    assert not next(model.parameters()).requires_grad
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    model(torch.randn(2, 3, 32, 32)).sum().backward()  # no stored table belongs to the counting


KINDS_OF_CALLS = [
    (lambda x: x.exp(), {"exp": 12}),
    (lambda x: x.exp_(), {"exp": 12}),
    (lambda x: x.softmax(-1), {"softmax": 12}),
    (lambda x: x.log_softmax(-1), {"softmax": 12}),
    (F.gelu, {"gelu": 12}),
    (lambda x: F.gelu(x, approximate="tanh"), {"gelu": 12}),
    (F.silu, {"silu": 12}),
    (torch.sigmoid, {"sigmoid": 12}),
    (torch.tanh, {"tanh": 12}),
    (torch.erf, {"erf": 12}),
    (lambda x: x.abs().log1p(), {"log": 12}),
    (lambda x: x.sin() + x.cos(), {"trigonometric": 24}),
    (lambda x: x.abs() ** 1.3, {"power": 12}),
    (lambda x: 2.0**x, {"power": 12}),
    (lambda x: x.abs() ** x, {"power": 12}),
    (lambda x: x**2 + x.abs() ** 0.5 + x.abs().sqrt() / 3 + x.relu() + F.hardswish(x), {}),
    (lambda x: F.scaled_dot_product_attention(*[x.view(1, 2, 3, 2)] * 3), {"softmax": 18}),
    (lambda x: F.layer_norm(x, (4,)) + F.normalize(x, p=1.0), {}),
]


@pytest.mark.parametrize(("call", "kinds"), KINDS_OF_CALLS)
def test_every_kind_is_seen(call: object, kinds: dict[str, int]) -> None:
    x = torch.randn(3, 4)
    with TranscendentalCounter() as counter:
        call(x)  # type: ignore[operator]
    assert dict(counter.kinds) == kinds


def test_activation_bytes_by_hand() -> None:
    """A linear layer keeps its input (float32, 3 x 8 x 8 pixels), ReLU its output (10 numbers);
    parameters are not counted.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10), nn.ReLU(), nn.Linear(10, 2))
    assert cost(model, 8).activation_bytes == 4 * (3 * 8 * 8 + 10)


def test_cost_speaks() -> None:
    text = str(cost(softless.create_model("deit_tiny_patch16_224", img_size=32)))
    assert "exponentials in attention  900" in text  # 12 layers x 3 heads x 5 x 5
