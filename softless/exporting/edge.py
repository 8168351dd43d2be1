"""`edge`: the module that is recorded when a model becomes a file.

In the edge form everything that hangs on the size of the image alone is a constant, and every layer
holds what stands before and behind it.
"""

# B batch, C channels, H x W pixels

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from softless.attention.inverse import by_newton
from softless.convert.swap import Teller
from softless.errors import UsageError, need_module, unknown
from softless.exporting.forms.parts import NoForm, Setting
from softless.exporting.forms.steps import Steps, chosen, inverts
from softless.exporting.forms.table import FORMS
from softless.inference.model import InferenceModel
from softless.inference.optimize import copied
from softless.inference.packed import NOT_EXPORTED
from softless.layers.plain import refuse_parts, why_called
from softless.models.bag import refuse_bags
from softless.models.hosts import host_of

FORM_NAMES = ("auto", "edge", "plain")


class Edge(nn.Module):
    """A model in the form in which it is recorded: images (B,C,H,W) -> the model's answers.

    Args:
        model: the form, or a copy of the model as it is.
        form: "edge" or "plain".
        why: why it is plain where "auto" was asked for; empty otherwise.
        setting: size of the images, number of images, Newton's steps.
        inversion: what was measured of the steps; None where nothing is inverted, and where no
            images chose them.
    """

    def __init__(
        self, model: nn.Module, form: str, why: str, setting: Setting, inversion: Steps | None
    ) -> None:
        super().__init__()
        self.model, self.form, self.why = model, form, why
        self.setting, self.inversion = setting, inversion
        self.inverts = form == "plain" and inverts(model)

    def forward(self, images: Tensor) -> Any:
        """Images (B,C,H,W) -> what the model answers.

        Raises:
            UsageError: in the edge form, images of another size or number than it was made for.
        """
        if self.form == "edge":
            _refuse_other(images, self.setting)
        if not self.inverts:
            return self.model(images)
        with by_newton(self.setting.steps):
            return self.model(images)

    def extra_repr(self) -> str:
        height, width = self.setting.size
        return f"form={self.form!r}, size={height} x {width}, batch={self.setting.batch or 'any'}"


def edge(
    model: nn.Module,
    size: int | Sequence[int] | None = None,
    form: str = "auto",
    *,
    batch: int | None = None,
    images: Tensor | None = None,
) -> Edge:
    """A model as it is written into a file: for one size of images, with all that can be folded
    folded in float64.

    Tables of positions are constants, q, k and v have layers of their own, and no tensor has more
    than four dimensions. Norms' affines, layer scales and BatchNorms stand in the layers beside
    them. SOFT's inverse takes a fixed number of Newton's steps. The answers are the model's, to
    1e-5 of the largest in float32.

    Args:
        model: the model; it is not touched.
        size: height and width of the images in pixels, or the side of a square; the model's own by
            default.
        form: "edge"; "plain", a copy as it is, which takes what sizes the model takes; "auto", edge
            where there is such a form of every part, else plain, whose `why` says the reason.
        batch: 1 for one image at a time, whose products have three dimensions (ExecuTorch, Core
            ML); None for any number.
        images: prepared images (B, C, H, W), on which Newton's steps are chosen; without any they
            are as many as no matrix outlasts.

    Returns:
        The module, in evaluation; its `form`, `why`, `setting` and `inversion` say what it is.

    Raises:
        UsageError: an unknown form, a size that the model does not take, an optimized model; with
            form="edge" a part that has no edge form; images on which Newton's iteration does not
            converge.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2).eval()
        >>> module = softless.edge(model, (96, 64))
        >>> image = torch.ones(1, 3, 96, 64)
        >>> torch.allclose(module(image), model(image), atol=1e-5)
        True
    """
    need_module(model, "edge")
    refuse_bags(model, "export")
    if form not in FORM_NAMES:
        raise unknown("form", str(form), FORM_NAMES)
    if batch not in {None, 1}:
        raise UsageError(f"batch={batch!r}: 1 for one image at a time, None for any number")
    if isinstance(model, InferenceModel):
        raise UsageError(NOT_EXPORTED)
    refuse_parts(model, "edge")
    pixels = _size(model, size)
    copy = copied(model).eval().requires_grad_(requires_grad=False)
    inversion = None
    if images is not None:
        _refuse_images(images, pixels)
        inversion = chosen(copy, images) if inverts(copy) else None
    setting = Setting(pixels, batch, None if inversion is None else inversion.steps)
    if form == "plain":
        return Edge(copy, "plain", "", setting, inversion).eval()
    try:
        made = _form(copy, setting)
    except NoForm as error:
        if form == "edge":
            raise UsageError(
                f'this model has no edge form: {error}. Take form="plain", the model as it is'
            ) from None
        return Edge(copy, "plain", str(error), setting, inversion).eval()
    made = made.requires_grad_(requires_grad=False)
    return Edge(made, "edge", "", setting, inversion).eval()


def _form(model: nn.Module, setting: Setting) -> nn.Module:
    """The edge form of a model.

    Raises:
        NoForm: there is none of its host, or somebody changed a part of it.
    """
    host = host_of(model)
    if host is None or host.name not in FORMS:
        raise NoForm(f"there is no edge form of a {type(model).__name__}")
    with _silent(model):
        for path, part in model.named_modules():
            if why := why_called(part) or _replaced(part):
                raise NoForm(why, path)
        return FORMS[host.name](model, setting)


@contextmanager
def _silent(model: nn.Module) -> Iterator[None]:
    """Without the hooks by which `swap` lets a model's attention know the grid: a form knows it."""
    tellers = [
        (module._forward_hooks, key, hook)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, Teller)
    ]
    for hooks, key, _ in tellers:
        del hooks[key]
    try:
        yield
    finally:
        for hooks, key, hook in tellers:
            hooks[key] = hook


def _replaced(module: nn.Module) -> str:
    """Which method of a module somebody replaced on it alone, as the end of a sentence."""
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and callable(getattr(type(module), name, None))
    ]
    return f"its {own[0]} was replaced" if own else ""


def _size(model: Any, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the images that a form is made for.

    Raises:
        UsageError: no size, or the model says none of its own.
    """
    if size is None:
        embed = getattr(model, "patch_embed", None)
        configured = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[1:]
        own = getattr(model, "img_size", None) or getattr(embed, "img_size", None) or configured
        size = own
    try:
        height, width = (size, size) if isinstance(size, int) else size
        sides = int(height), int(width)
    except (TypeError, ValueError):
        sides = (0, 0)
    if min(sides) < 1:
        raise UsageError(f"size={size!r}: give height and width in pixels, or the side of a square")
    return sides


def _refuse_images(images: Tensor, size: tuple[int, int]) -> None:
    if images.ndim != 4 or tuple(images.shape[-2:]) != size:
        raise UsageError(
            f"images is {tuple(images.shape)}: it must be (B, C, {size[0]}, {size[1]}), prepared "
            "as the model takes them"
        )


def _refuse_other(images: Tensor, setting: Setting) -> None:
    """Refuse images that a form was not made for: 56 x 14 patches are as many as 14 x 56."""
    height, width = setting.size
    if tuple(images.shape[-2:]) != setting.size:
        raise UsageError(
            f"this form takes images of {height} x {width}, and these are {images.shape[-2]} x "
            f"{images.shape[-1]}: make another with softless.edge(model, size)"
        )
    if setting.batch is not None and images.shape[0] != setting.batch:
        raise UsageError(
            f"this form takes {setting.batch} image at a time, and {images.shape[0]} came: make "
            "one with batch=None"
        )
