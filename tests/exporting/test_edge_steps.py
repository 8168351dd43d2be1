"""SOFT's inverse in an edge form: as many of Newton's steps as images need, the same steps in the
plain model, and a refusal where they do not suffice.
"""

import copy

import pytest
import torch
from torch import Tensor

import softless
from softless.attention import inverse
from softless.attention.inverse import FURTHER, by_newton, most_steps, watching_newton
from softless.errors import UsageError
from softless.exporting.forms.soft import Bottleneck
from softless.models.create import create_model
from tests.exporting.alive import alive
from tests.exporting.forms import BAR, apart, images, vit


@pytest.mark.parametrize("op", ["soft", "softnorm"])
@pytest.mark.parametrize("form", ["edge", "plain"])
def test_the_form_is_the_model_by_the_same_steps(op: str, form: str) -> None:
    model = alive(vit(op), images())
    module = softless.edge(model, form=form, images=images())
    assert module.inversion is not None
    assert module.setting.steps == module.inversion.steps
    assert module.inversion.residual <= inverse.RESIDUAL
    with torch.no_grad(), by_newton(module.setting.steps):
        expected = model(images())
    answer = module(images())
    assert float((answer - expected).abs().max() / expected.abs().max()) <= BAR
    # too few of them are another function
    with torch.no_grad(), by_newton(3):
        fewer = model(images())
    assert float((answer - fewer).abs().max() / expected.abs().max()) > 100 * BAR


def test_the_pyramids_own_operators_among_many_tokens() -> None:
    """49 bottleneck tokens and published strides: matrices of all conditions."""
    x = images(224, 224, number=1)
    model = alive(create_model("soft_tiny_224", depths=(1, 1, 1, 1), num_classes=10), x)
    with torch.no_grad(), watching_newton() as needed:
        model(x)
    assert most_steps(49, 0.01) + FURTHER >= needed.most > most_steps(49, 0.01) // 2
    assert needed.residual <= inverse.RESIDUAL


def test_steps_are_the_most_that_any_matrix_needs() -> None:
    """A flat image needs more of them than noise does: its tokens are alike."""
    model = alive(vit("soft"), images())
    flat = torch.zeros(1, 3, 64, 96)
    noise = softless.edge(model, images=images()).inversion.steps
    both = softless.edge(model, images=torch.cat([images(), flat])).inversion
    assert both.steps > noise
    with torch.no_grad(), watching_newton() as needed:
        model(flat)
    assert both.steps == needed.most
    assert both.images == 4
    assert str(both).startswith(f"{both.steps} of Newton's steps, chosen on 4 images: |I - A X|")


def test_without_images_no_matrix_outlasts_the_steps() -> None:
    model = alive(vit("soft"), images())
    module = softless.edge(model)
    assert module.inversion is None
    cores = [part for part in module.modules() if isinstance(part, Bottleneck)]
    assert [core.steps for core in cores] == [most_steps(6, 0.01) + FURTHER] * 2
    flat = torch.zeros(1, 3, 64, 96)
    assert apart(module, model, torch.cat([images(), flat])) <= BAR


def test_the_distance_to_the_models_own_inverse_is_told() -> None:
    model = alive(vit("soft"), images())
    module = softless.edge(model, images=images())
    told = module.inversion.distance
    assert told == pytest.approx(
        apart(softless.edge(model, form="plain"), model, images()), abs=BAR
    )
    assert 0 < told <= BAR


def test_a_matrix_that_is_not_inverted_is_refused() -> None:
    model = alive(vit("soft", ridge=1e-9), images())
    with torch.no_grad():  # all tokens alike
        for block in model.blocks:
            block.attn.qv.weight[:48] *= 1e-6
    with pytest.raises(UsageError, match=r"leave \|I - A X\| = .* and 0\.001 is the most"):
        softless.edge(model, images=images())
    with pytest.raises(UsageError, match="leave"):
        softless.edge(alive(vit("soft"), images()), images=images() * torch.nan)
    with pytest.raises(UsageError, match="images holds none"):
        softless.edge(vit("soft"), images=images()[:0])


def test_other_operators_need_no_steps() -> None:
    assert softless.edge(vit().eval(), images=images()).inversion is None
    assert softless.edge(vit("soft", parity=True).eval(), images=images()).inversion is None


def _matrices() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 5, 4, generator=generator)
    return (-0.5 * torch.cdist(x, x).square()).exp()


def test_steps_of_one_thread_are_not_anothers() -> None:
    import threading

    a, seen = _matrices(), []
    exact = inverse.inverse(a, 0.01)
    with by_newton(1):
        thread = threading.Thread(target=lambda: seen.append(inverse.inverse(a, 0.01)))
        thread.start()
        thread.join()
        assert not torch.allclose(inverse.inverse(a, 0.01), exact, rtol=1e-2)
    assert torch.equal(seen[0], exact)
    assert torch.equal(inverse.inverse(a, 0.01), exact)


def test_within_newton_the_dtype_is_the_models() -> None:
    """No float64, which the form has not either."""
    model = alive(vit("soft"), images())
    kinds: set[torch.dtype] = set()
    original = inverse.stepped

    def noted(a: Tensor, identity: Tensor, steps: int) -> Tensor:
        kinds.add(a.dtype)
        return original(a, identity, steps)

    inverse.stepped = noted
    try:
        with torch.no_grad(), by_newton(8):
            copy.deepcopy(model)(images())
    finally:
        inverse.stepped = original
    assert kinds == {torch.float32}
