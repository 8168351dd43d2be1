"""`softless recover`: a trained model with another attention, and its accuracy back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from softless.attention.checks import check_options
from softless.attention.registry import get
from softless.cli.swap import options_of
from softless.errors import Interrupted, located
from softless.recovery import recover as recovery
from softless.recovery.folder import PAGE
from softless.recovery.page import sentence
from softless.recovery.recovered import Recovered
from softless.recovery.steps import REFIT
from softless.tasks.trained import trained_model


@dataclass(frozen=True)
class Recovery:
    """What came out, and where it lies."""

    model: str
    recovered: Recovered
    loaded: str  # what load_weights said

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold."""
        return {"model": self.model, **self.recovered.to_dict()}

    def __str__(self) -> str:
        assert self.recovered.out is not None
        content = self.recovered.to_dict()
        lines = [self.loaded, ""] if self.loaded else []
        lines += [str(self.recovered), "", sentence(content)]
        return "\n".join([*lines, f"page: {self.recovered.out / PAGE}"])


def recover(
    model: str,
    op: str = "sima",
    *,
    images: str | Path,
    out: str | Path,
    weights: str | Path | None = None,
    allow_nonfinite: bool = False,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
    steps: Sequence[str] = (REFIT,),
    epochs: int = 5,
    lr: float | None = None,
    ridge: float | None = None,
    layers: Sequence[str] = ("*",),
    force: Sequence[str] = (),
    set: Sequence[str] = (),  # the command says --set
    number: int | None = None,
    labels: bool = False,
    class_weight: float | None = None,
    only: Literal["all", "attention", "lora"] = "all",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Recovery:
    """Exchange the attention of a trained model and bring its accuracy back, from images without
    labels.

    The refit needs a few hundred images and no gradient: block after block, the projection of the
    attention and the last layer of the MLP are fitted to what the model was. A distillation after
    it (--steps refit distil) is a short training on the old model's answers. The Python function
    softless.recover takes a module.

    Images are framed as the model's own evaluation frames them. Class folders of the model's class
    names tell its accuracy too. Of a folder with parts, train is learned from and val measured on.

    Args:
        model: the folder of a run of `softless train` (a classifier, segmenter or detector) or of
            `save_weights`, or the name of a model with --weights or --pretrained.
        op: the operator.
        images: a folder of images, or of class folders.
        out: a folder for recover.json, report.html, model (for eval, predict, export and others)
            and the run of the distillation.
        weights: a checkpoint for a model of that name.
        allow_nonfinite: take NaN and infinity in it.
        pretrained: start from the weights that timm knows for the name (downloads).
        num_classes: classes of a model of one's own, as --weights has them.
        in_chans: channels of its images.
        image_size: pixels of their side.
        steps: refit, distil, or both in this order.
        epochs: of the distillation.
        lr: its learning rate; without it 3e-5 after a refit that chose its ridge, else 5e-4.
        ridge: strength of the refit; without it held-out images choose it for each layer.
        layers: patterns of the paths of attention modules ("blocks.[0-5].*"); the others are kept.
        force: patterns of the paths at which what an operator cannot keep may be lost.
        set: options of the operator, as in token_scale=tokens.
        number: how many images the refit uses, drawn in turn from each folder below; without it
            256, or 1,024 where a distillation follows.
        labels: the distillation learns from the labels of class folders too.
        class_weight: what a token ahead of the patches counts beside a patch in the refit; without
            it as the head reads them.
        only: what the distillation moves: all, attention, or lora (low-rank updates, merged).
        seed: which images are held out; of the distillation.
        resume: go on with a recovery that was interrupted.
        overwrite: delete what OUT holds of a recovery before.

    Raises:
        UsageError: an unknown model, operator or option, a model in which nothing can be exchanged,
            or whose weights no training has seen, a folder that is in use.
        DataError: weights or images that cannot be read, or too few images.
    """
    options = options_of(set)
    check_options(get(op), options)
    arguments = {"num_classes": num_classes, "in_chans": in_chans, "img_size": image_size}
    sizes = {name: value for name, value in arguments.items() if value is not None}
    network, loaded = trained_model(
        model, weights, sizes, pretrained=pretrained, allow_nonfinite=allow_nonfinite
    )
    try:
        recovered = recovery.recover(
            network,
            op,
            images=located(images),
            out=out,
            steps=tuple(steps),
            epochs=epochs,
            lr=lr,
            ridge="held-out" if ridge is None else ridge,
            layers="*" if list(layers) == ["*"] else tuple(layers),
            force=tuple(force),
            number=number,
            labels=labels,
            class_weight="auto" if class_weight is None else class_weight,
            only=only,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **options,
        )
    except Interrupted as error:
        said = str(error).replace("the same call and resume=True", "the same command and --resume")
        raise Interrupted(said, error.exit_code) from error
    return Recovery(model, recovered, loaded)
