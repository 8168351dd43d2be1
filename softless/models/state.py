"""The weights of a run put into its model, which they must fit exactly."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from softless.errors import DataError, UsageError
from softless.models.features import without_cut_parts
from softless.models.files import read_safetensors


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        DataError: the file is damaged; it is named.
    """
    return read_safetensors(file)


def fill(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load a state that must fit exactly.

    Raises:
        UsageError: tensors missing, unknown or of another shape: it is another model's file.
        DataError: numbers that are not finite.
    """
    state = without_cut_parts(model, state)
    if wrong := mismatches(model, state):
        remainder = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(
            f"{file} is a checkpoint of another model: {', '.join(wrong[:5])}{remainder}"
        )
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise DataError(
            f"{file} holds numbers that are not finite, first in {bad[0]}: the file is of no use"
        )
    model.load_state_dict(dict(state))


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """A clause for each tensor in which a state is not that of the model: missing, unknown, of
    another shape.
    """
    own = model.state_dict()
    return [
        *(f"{name} is missing" for name in own if name not in state),
        *(f"{name} is unknown" for name in state if name not in own),
        *(
            f"{name} has shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
