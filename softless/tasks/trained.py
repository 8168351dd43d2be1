"""A trained model by what people name it with: the folder of a run or of `save_weights`, or a name
with its weights.
"""

from pathlib import Path
from typing import Any

from torch import nn

from softless.errors import SoftlessError, UsageError, located
from softless.evaluation.run import LoadedRun
from softless.models.create import FOLDER, create_model, of_channels
from softless.models.published import names_folder, published_folder
from softless.models.weights import load_weights
from softless.tasks.loaded import load_run


def trained_model(
    name: str,
    weights: str | Path | None,
    sizes: dict[str, int],
    *,
    pretrained: bool = False,
    allow_nonfinite: bool = False,
) -> tuple[nn.Module | LoadedRun, str]:
    """The trained model that a name stands for, and what was loaded into it.

    Args:
        name: the folder of a run or of `save_weights`, `local-dir:FOLDER`, or the name of a model.
        weights: a checkpoint for a model of that name.
        sizes: num_classes, in_chans and img_size of such a model, where they are asked for.
        pretrained: take the weights that timm knows for the name.
        allow_nonfinite: take NaN and infinity in a checkpoint.

    Raises:
        UsageError: none, or one that nothing trained.
    """
    if names_folder(name):
        given = {"weights": weights is not None, "pretrained": pretrained, **dict.fromkeys(sizes)}
        options = [option for option, there in given.items() if there or there is None]
        if options:
            word = {"img_size": "image-size"}.get(options[0], options[0].replace("_", "-"))
            raise UsageError(
                f"'{name}' is a folder: the weights and sizes in it are its own; --{word} goes "
                "with the name of a model"
            )
        return load_run(name), ""
    if pretrained and weights is not None:
        raise UsageError(
            "--pretrained and --weights both say where the weights come from: choose one"
        )
    if not pretrained and weights is None:
        raise UsageError(
            f"'{name}' alone has new weights, with nothing to recover: give --weights FILE, "
            "--pretrained, or the folder of a run"
        )
    network = created(name, pretrained, dict(sizes)).eval()
    if weights is None:
        return network, ""
    try:
        return network, str(load_weights(network, weights, allow_nonfinite=allow_nonfinite))
    except SoftlessError as error:
        if "num_classes" in sizes or 'head="new"' not in str(error):
            raise
        raise UsageError(
            f"{located(weights).name} has another classifier than {name} with its "
            f"{getattr(network, 'num_classes', 0)} classes: say how many it has with --num-classes"
        ) from error


def created(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """The model before the swap.

    Raises:
        UsageError: a number that is none, or that its host does not take.
    """
    for option, value in arguments.items():
        if value < (0 if option == "num_classes" else 1):
            word = {"img_size": "image-size"}.get(option, option.replace("_", "-"))
            raise UsageError(f"--{word} {value}: give a positive number")
    folder = published_folder(name)
    known = name if folder is None else f"{FOLDER}{folder}"
    try:
        network = create_model(known, pretrained=pretrained or folder is not None, **arguments)
    except SoftlessError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"{name} with {arguments} cannot be built: {str(error).splitlines()[0][:200]}"
        ) from error
    return _prepared(network, arguments.get("in_chans"), arguments.get("img_size"))


def _prepared(model: Any, channels: int | None, side: int | None) -> Any:
    """A model that says how images of other channels or of another size than it was published with
    are prepared.
    """
    config = dict(model.pretrained_cfg)
    config |= {} if side is None else {"input_size": (config["input_size"][0], side, side)}
    model.pretrained_cfg = config | ({} if channels is None else of_channels(config, channels))
    return model
