"""What a meter says of a false claim, and the error that lists them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from softless.attention.record import Operator
from softless.errors import SoftlessError


@dataclass(frozen=True)
class Fault:
    """A claim that the measurement contradicts. Prints as one sentence that names the field."""

    field: str  # of the record, as claims.growth
    says: str  # what the record claims
    measured: str  # what was found
    change: str  # what to write

    def __str__(self) -> str:
        return (
            f"{self.field}: the record says {self.says}; measured: {self.measured}; {self.change}"
        )


class ContractBroken(SoftlessError, AssertionError):
    """The record of an operator claims what is not so; `faults` holds each claim with the number
    measured and the field to change.
    """

    exit_code = 1

    def __init__(self, name: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(
            "\n".join([
                f"operator '{name}' breaks its contract in {len(faults)} places:",
                *(f"  {fault}" for fault in faults),
            ])
        )
        self.name, self.faults = name, faults


Meter = Callable[[Operator], Iterator[Fault]]


def measured(field: str, meter: Meter, op: Operator) -> list[Fault]:
    """The faults that a meter finds; an exception on the way is a fault of its field."""
    try:
        return list(meter(op))
    # whatever a stranger's function raises is said in one sentence
    except Exception as error:  # noqa: BLE001
        sentence = " ".join(str(error).split())[:300]
        return [
            Fault(field, "that this works", f"{type(error).__name__}: {sentence}", f"mend {field}")
        ]
