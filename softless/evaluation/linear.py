"""A linear classifier on frozen features: multinomial logistic regression by SGD, as DINO and SimA
measure them.

    rate of epoch e = lr batch / 256 (1 + cos(pi e / epochs)) / 2,     momentum 0.9

Defaults are SimA's (arXiv:2206.08898, section 4.3) under DINO's rule for the rate. They are lr
1e-3, a batch of 1024, no weight decay, 100 epochs, a random resized crop and a flip for each image
and epoch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochOrder, mix, shared_loader, train_loader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import DivergedError, UsageError
from softless.evaluation.features import Probe, extract, layers

# of an epoch: features (B, D) and labels (B,)
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class LinearSettings:
    """How the classifier is trained."""

    lr: float = 1e-3  # at a batch of 256
    epochs: int = 100
    batch: int = 1024  # the number of training images where there are fewer
    weight_decay: float = 0.0
    momentum: float = 0.9
    views: Literal["random", "fixed"] = (
        # fixed: each image as in evaluation, its features computed once; minutes instead of hours
        "random"
    )
    seed: int = 0

    def __str__(self) -> str:
        views = "random crops and flips" if self.views == "random" else "fixed views"
        return (
            f"SGD, lr {self.lr:g} at a batch of 256, batch {self.batch}, {self.epochs} epochs, "
            f"{views}"
        )


def probe(
    model: nn.Module,
    train: Samples,
    test: Samples,
    classes: tuple[str, ...],
    *,
    views: Pipeline,
    transform: Pipeline,
    settings: LinearSettings | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Probe:
    """Train the classifier on the features of `train` and answer `test`.

    Args:
        model: frozen; `features.layers` says which of its features are taken.
        train: labelled images.
        test: labelled images of the same classes.
        classes: names in index order.
        views: of a training image where views are random (`softless.tasks.dino.transforms.one_crop`).
        transform: of evaluation.
        settings: of the classifier.
        batch_size: images through the model at once, where they are not trained on.
        workers: processes that load images.

    Raises:
        UsageError: settings that cannot be used.
        DivergedError: features or a loss that are not finite.
    """
    settings = checked(settings or LinearSettings())
    batch = min(settings.batch, len(train))
    device = next(model.parameters()).device

    def features(samples: Samples, label: str) -> tuple[Tensor, Tensor]:
        loader = shared_loader(samples, transform, batch=batch_size, workers=workers)
        return extract(model, loader, layers, device=device, label=label)

    test_features, test_labels = features(test, "features of test images")
    if settings.views == "fixed":
        batches = in_memory(*features(train, "features of training images"), batch, settings.seed)
    else:
        batches = _random_views(model, train, views, batch, settings, workers)
    linear = fit(batches, test_features.shape[1], len(classes), settings, batch)
    with torch.no_grad():
        predicted = linear(test_features).argmax(1).numpy()
    return Probe(
        "linear",
        str(settings),
        predicted,
        test_labels.numpy(),
        classes,
        len(train),
        test_features.shape[1],
    )


def _random_views(
    model: nn.Module,
    train: Samples,
    views: Pipeline,
    batch: int,
    settings: LinearSettings,
    workers: int,
) -> Batches:
    """Batches of the features of new views in each epoch; ranks compute whole batches in turn, and
    each has them all.
    """
    loader = train_loader(
        train,
        views,
        batch=batch,
        seed=settings.seed,
        workers=workers,
        rank=ranks.rank(),
        world=ranks.size(),
        whole_batches=True,
    )
    device = next(model.parameters()).device
    steps = len(train) // batch

    def computed(label: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in track(
            loader, steps * batch // ranks.size(), label, size=lambda part: len(part[1])
        ):
            with torch.no_grad():
                features = layers(model, images.to(device)).float().cpu()
            yield features, labels

    def of(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        loader.set_epoch(epoch)
        return ranks.everywhere(
            computed(f"linear classifier, epoch {epoch + 1} of {settings.epochs}"), steps
        )

    return of


def fit(
    batches: Batches, width: int, classes: int, settings: LinearSettings, batch: int
) -> nn.Linear:
    """Train the classifier (width -> classes) on what `batches` yields for each epoch, `batch`
    images at once: features (B, width) and labels (B,).

    Raises:
        DivergedError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(settings.seed) >> 1)
        linear = nn.Linear(width, classes)
        nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    top = settings.lr * batch / 256
    mover = torch.optim.SGD(
        linear.parameters(), top, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for epoch in range(settings.epochs):
        for group in mover.param_groups:
            group["lr"] = top * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for features, labels in batches(epoch):
            loss = F.cross_entropy(linear(features), labels)
            if not loss.isfinite():
                raise DivergedError(
                    f"the linear classifier's loss is {float(loss.detach())} in epoch "
                    f"{epoch + 1}: try a lower lr than {settings.lr:g}"
                )
            mover.zero_grad()
            loss.backward()
            mover.step()
    return linear


def in_memory(features: Tensor, labels: Tensor, batch: int, seed: int) -> Batches:
    """Batches of features (n, D) and labels (n,) that are held in memory, in an order that derives
    from (seed, epoch).
    """
    order = EpochOrder(len(features), batch, seed)

    def of(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        order.set_epoch(epoch)
        return ((features[positions], labels[positions]) for positions in order)

    return of


def checked(settings: LinearSettings) -> LinearSettings:
    """The settings.

    Raises:
        UsageError: one that cannot be used.
    """
    if settings.lr <= 0 or settings.epochs < 1 or settings.batch < 1:
        raise UsageError(
            f"lr={settings.lr}, epochs={settings.epochs}, batch={settings.batch} of the linear "
            "classifier: all must be above 0"
        )
    return settings
