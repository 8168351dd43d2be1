"""An operator of one's own: every door that the built-in ones have, and one sentence for what
cannot be registered.
"""

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import softless
from softless import OPERATORS, UsageError
from softless.attention import Backend, Claims, Identity, Operator, Option
from softless.layers import Attention, operator_class
from softless.models.registration import register_installed
from tests.attention.outside import linear, quadratic, reference
from tests.ops.draw import assert_near
from tests.registered import registered

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(op: Any) -> Any:
    return softless.create_model(
        "deit_tiny_patch16_224", op=op, depth=2, img_size=64, num_classes=4
    ).eval()


def test_every_door() -> None:
    with registered(linear()) as cls:
        assert (
            softless.register(OPERATORS["mine"]) is cls is softless.Mine is operator_class("mine")
        )
        assert "Mine" in dir(softless)
        host: Any = timm.create_model("deit_tiny_patch16_224", attn_layer=cls, depth=1)
        assert host.blocks[0].attn.op is OPERATORS["mine"]
        named = timm.create_model(
            "mine_deit_tiny_patch16_224", depth=2, img_size=64, num_classes=4
        ).eval()
        assert "mine_xcit_nano_12_p16_224" in timm.list_models("mine_*")
        torch.manual_seed(0)
        model = small(OPERATORS["mine"])
        named.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected = model(IMAGE)
            assert torch.equal(named(IMAGE), expected)
            assert_near(softless.optimize(model, dtype=torch.float32)(IMAGE), expected, 1e-4)
            assert_near(softless.stream(model, IMAGE[0]).logits, expected, 1e-4)
        assert softless.explain(model, IMAGE).class_row is not None
        assert softless.cost(model, 64).exps == 0
        assert "mine" in softless.list("operators")
        swapped = timm.create_model("deit_tiny_patch16_224", depth=1)
        assert "now compute 'mine'" in str(softless.swap(swapped, op="mine"))
    assert "mine" not in OPERATORS
    assert not timm.list_models("mine_*")


def test_copies_and_pickles() -> None:
    record = linear()
    bare = Attention(24, 3, op=record)
    assert copy.deepcopy(bare).op is copy.copy(record) is record
    with pytest.raises(
        UsageError,
        match=r"operator 'mine' is not registered: call softless.register\(record\) first",
    ):
        pickle.dumps(bare)
    with registered(record):
        model = small("mine")
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(IMAGE), model(IMAGE))
        assert copy.deepcopy(model).blocks[0].attn.op is record
        text = pickle.dumps(model)
    with pytest.raises(
        UsageError,
        match=r"saved with operator 'mine', which this process has not registered: import the "
        r"module",
    ):
        pickle.loads(text)


@pytest.mark.parametrize(
    "use", [lambda op: softless.create_model("deit_tiny_patch16_224", op=op), operator_class]
)
@pytest.mark.parametrize(
    "record", [linear("unknown"), OPERATORS["sima"].changed(growth="N")], ids=["new", "changed"]
)
def test_a_record_that_is_not_in_the_list(use: Callable[..., Any], record: Operator) -> None:
    """Once a bare KeyError, or the class of another record with that name."""
    with pytest.raises(
        UsageError,
        match=rf"operator '{record.name}' is not registered.*softless\.register\(record\) first",
    ):
        use(record)


def wrong_shape(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None, query_mask: Any = None
) -> Tensor:
    return reference(q, k, v, mask=mask, query_mask=query_mask).transpose(1, 2)


def without_masks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference(q, k, v)


def of_two(q: Tensor, k: Tensor) -> Tensor:
    return q + k


def with_a_keyword(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None, query_mask: Any = None, eps: float = 1.0
) -> Tensor:
    return reference(q, k, v, mask=mask, query_mask=query_mask) * eps


def cast(q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None, query_mask: Any = None) -> Tensor:
    return reference(q, k, v, mask=mask, query_mask=query_mask).float()


def anything(q: Tensor, k: Tensor, v: Tensor, **masks: Any) -> Tensor:
    return reference(q, k, v, **masks)


def raising(q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None, query_mask: Any = None) -> Tensor:
    return reference(q, k @ v, v, mask=mask, query_mask=query_mask)


def number(value: Any) -> bool:
    return isinstance(value, float)


def option(name: str) -> Operator:
    def taking(
        q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None, query_mask: Any = None, **_: Any
    ) -> Tensor:
        return reference(q, k, v, mask=mask, query_mask=query_mask)

    known = inspect.signature(reference)
    more = inspect.Parameter(
        name if name != "mask" else "other", inspect.Parameter.KEYWORD_ONLY, default=0.5
    )
    taking.__signature__ = known.replace(parameters=[*known.parameters.values(), more])  # type: ignore[attr-defined]
    return replace(
        linear(), reference=taking, options={name: Option(0.5, "a number", number, "a number")}
    )


NOTHING: Any = None

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no record": (lambda: softless.SimA, r"takes a record, softless.attention.Operator\(…\)"),
    "no identity": (
        lambda: Operator(reference=reference),
        r"without identity: write identity=Identity\(name=",
    ),
    "no name": (lambda: Identity(summary="x"), r"without identity.name: write Identity\(name="),
    "no reference": (
        lambda: replace(linear(), reference=NOTHING),
        r"without reference: write reference=reference, with def reference\(",
    ),
    "no claims": (
        lambda: Operator(Identity("mine", "x"), reference),
        r"without claims: write claims=Claims\(flops=",
    ),
    "no flops": (Claims, r"without claims.flops: write Claims\(flops=lambda d"),
    "no summary": (lambda: linear().changed(summary=""), r"identity.summary='' must be one line"),
    "a name in capitals": (lambda: linear("Mine"), r"identity.name='Mine': small letters"),
    "a taken name": (
        lambda: linear("sima"),
        r"identity.name='sima' is taken by another operator: choose another",
    ),
    "a taken title": (
        lambda: linear().changed(title="SimA"),
        r"identity.title='SimA' is taken by operator 'sima'",
    ),
    "a formula that is none": (
        lambda: linear().changed(formula="linear"),
        r"identity.formula='linear' must be an equation",
    ),
    "a paper nowhere": (
        lambda: linear().changed(paper="ours"),
        r"identity.paper='ours' must say where",
    ),
    "no mask": (
        lambda: replace(linear(), reference=without_masks),
        r"takes no keyword 'mask': write def reference\(q, k, v, \*, mask=None",
    ),
    "two tensors": (
        lambda: replace(linear(), reference=of_two),
        r"does not take q, k and v, in that order: write def",
    ),
    "no option": (
        lambda: replace(linear(), options={"eps": Option(0.1, "a number", number, "a number")}),
        (
            r"reference takes no keyword 'eps': write def reference\(q, k, v, \*, mask=None, "
            r"query_mask=None, eps\)"
        ),
    ),
    "an unknown keyword": (
        lambda: replace(linear(), reference=with_a_keyword),
        r"takes 'eps', which is no option: add it to options=",
    ),
    "a wrong shape": (
        lambda: replace(linear(), reference=wrong_shape),
        r"reference gives \(2, 6, 2, 4\).*must return \(B, H, N, E\)",
    ),
    "a cast": (
        lambda: replace(linear(), reference=cast),
        r"gives torch.float32 for float64 inputs: leave out casts",
    ),
    "any keyword": (
        lambda: replace(linear(), reference=anything),
        r"reference takes any keyword \(\*\*\): name each",
    ),
    "an exception": (
        lambda: replace(linear(), reference=raising),
        r"reference raises RuntimeError for q, k and v of shape",
    ),
    "an option of the host": (
        lambda: option("num_heads"),
        r"options\['num_heads'\] shadows an argument of the host .*for example options=",
    ),
    "an option of a pyramid": (
        lambda: option("embed_dims"),
        r"options\['embed_dims'\] shadows an argument of the host cvt",
    ),
    "an option of the call": (
        lambda: option("mask"),
        r"options\['mask'\] shadows an argument of softless.attend",
    ),
    "a companion": (lambda: option("v_conv"), r"options\['v_conv'\] shadows"),
    "a companion's gate": (lambda: option("gated"), r"options\['gated'\] shadows"),
    "FLOPs as a number": (
        lambda: linear().changed(flops=12),
        r"claims.flops=12 is no function: write flops=lambda d:",
    ),
    "FLOPs in words": (
        lambda: linear().changed(flops=lambda _: "few"),
        r"claims.flops gives 'few', and it counts: write flops=lambda d:",
    ),
    "FLOPs that raise": (
        lambda: linear().changed(flops=lambda d: d.Z),
        r"claims.flops raises AttributeError for Dims\(.*write flops=lambda d:",
    ),
    "exponentials as a number": (
        lambda: linear().changed(exps=0),
        r"claims.exps=0 is no function: write exps=lambda d:",
    ),
    "an unknown growth": (
        lambda: linear().changed(growth="n"),
        r"claims.growth='n' must be one of 'N', 'N\^2': write growth='N'",
    ),
    "another kind of rows": (
        lambda: linear().changed(normalises=True),
        r"claims.normalises=True must be one of 'rows', 'tokens', 'nothing': write",
    ),
    "yes for True": (
        lambda: linear().changed(equivariant="yes"),
        r"claims.equivariant='yes' must be one of False, True: write equivariant=",
    ),
    "an unknown resolution": (
        lambda: linear().changed(resolution="all"),
        r"claims.resolution='all' must be one of 'any', 'grid', 'fixed': write",
    ),
    "masks as a word": (
        lambda: linear().changed(masks="token"),
        r"claims.masks='token' must hold 'token'.*write masks=\('token',\)",
    ),
    "limits as a word": (
        lambda: linear().changed(limits="none"),
        r"claims.limits='none' is no function: write limits=lambda",
    ),
    "claims as a mapping": (
        lambda: Operator(Identity("mine", "x"), reference, {}),  # type: ignore[arg-type]
        r"with claims=\{\}: write claims=Claims\(flops=",
    ),
    "a name alone": (
        lambda: Operator("mine", reference, linear().claims),  # type: ignore[arg-type]
        r"with identity='mine': write identity=Identity\(",
    ),
    "a number for a name": (
        lambda: Identity(5, "x"),  # type: ignore[arg-type]
        r"with identity.name=5: write Identity\(name=",
    ),
    "a stream in words": (
        lambda: replace(linear(), streaming="yes"),  # type: ignore[arg-type]
        r"with streaming='yes': write streaming=Streaming.sums\(",
    ),
    "options in a list": (
        lambda: replace(linear(), options=["eps"]),  # type: ignore[arg-type]
        r"with options=\['eps'\]: write options=\{",
    ),
    "an option that is a number": (
        lambda: replace(linear(), options={"eps": 1.0}),  # type: ignore[dict-item]
        r"with options\['eps'\]=1.0: write options=\{",
    ),
    "a learned number": (
        lambda: replace(linear(), learned={"scale": 1.0}),  # type: ignore[dict-item]
        r"with learned\['scale'\]=1.0: write learned=\{",
    ),
    "one backend": (
        lambda: replace(linear(), own=Backend("eager", reference)),  # type: ignore[arg-type]
        r"with own=Backend.*write own=\(Backend\('eager', function\),\)",
    ),
    "a function for a backend": (
        lambda: replace(linear(), own=(reference,)),  # type: ignore[arg-type]
        r"with own=<function.*write own=\(Backend\(",
    ),
    "half in words": (
        lambda: linear().changed(half_refusal="no"),
        r"half.half_refusal='no' is no function: write half_refusal=lambda",
    ),
    "windows as a number": (
        lambda: linear().changed(reduces=2),
        r"host.reduces=2 is no function: write reduces=lambda options",
    ),
    "a class row in words": (
        lambda: linear().changed(class_row="yes"),
        r"views.class_row='yes' is no function: write class_row=row",
    ),
    "a class row without eps": (
        lambda: linear().changed(class_row=lambda q, k: q @ k.mT),
        r"views.class_row is called with q, k and eps=: write",
    ),
    "a hat in words": (
        lambda: linear().changed(hat="l1"),
        r"views.hat='l1' is no function: write hat=TokenNorm\('l1'\)",
    ),
    "a need without a rule": (
        lambda: linear().changed(needs={"tokens": True}),
        (
            r"host.needs=\{'tokens': True\} names what a host must tell.*write needs=\{'grid': "
            r"lambda "
            r"options: True\}"
        ),
    ),
    "no such field": (
        lambda: linear().changed(flop=1),
        r"no field of an operator's record named 'flop'. Did you mean 'flops'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_registered(name: str) -> None:
    make, sentence = BAD[name]
    with pytest.raises(UsageError, match=sentence) as caught:
        softless.register(make())
    assert "\n" not in str(caught.value)
    assert "mine" not in OPERATORS


def test_built_in_records_would_be_admitted() -> None:
    from softless.attention.admission import check_record

    for record in OPERATORS.values():
        assert check_record(record) is record


def test_the_least_that_can_be_written() -> None:
    """Without a backend the reference widened is "eager"; without a stream the reason is a
    sentence.
    """
    record = quadratic()
    assert [backend.name for backend in record.backends] == ["eager", "reference"]
    assert record.no_stream == "its record has no streaming form"
    assert record.title == "Squared"
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    assert_near(
        softless.attend(q.half(), k.half(), v.half(), op=record), record.reference(q, k, v), 2e-3
    )


def test_an_installed_package_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its record, or by a module that registers; a broken one is left out with a warning."""
    record = linear("installed")
    monkeypatch.setattr("tests.attention.outside.SPEC", record, raising=False)
    point = EntryPoint("installed", "tests.attention.outside:SPEC", "softless.operators")
    try:
        register_installed([point])
        assert OPERATORS["installed"] is record
    finally:
        from tests.registered import forget

        forget(record)
    with pytest.warns(UserWarning, match=r"the operators of package 'no_such_module' are left out"):
        register_installed([EntryPoint("x", "no_such_module", "softless.operators")])


def test_another_process(tmp_path: Path) -> None:
    """A model saved here is read where the operator is registered, and refused in one sentence
    where it is not.
    """
    record = linear("elsewhere")
    with registered(record):
        torch.save(small("elsewhere"), tmp_path / "model.pt")
    read = (
        f"import torch; print(type(torch.load({str(tmp_path / 'model.pt')!r}, "
        "weights_only=False).blocks[0].attn).__name__)"
    )
    made = (
        "from tests.attention.outside import linear; import softless; "
        "softless.register(linear('elsewhere')); "
    )
    here = subprocess.run(
        [sys.executable, "-c", made + read], capture_output=True, text=True, check=True
    )
    assert here.stdout.strip() == "Elsewhere"
    bare = subprocess.run(
        [sys.executable, "-c", "import softless; " + read],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bare.returncode
    assert "saved with operator 'elsewhere', which this process has not registered" in bare.stderr
