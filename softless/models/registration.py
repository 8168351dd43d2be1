"""`softless.register`: an operator of one's own, with every door that the built-in ones have."""

import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from timm.models import is_model

from softless.attention.admission import check_record
from softless.attention.record import Operator
from softless.attention.registry import OPERATORS, add
from softless.errors import UsageError
from softless.layers.attention import CLASSES, Attention, add_class
from softless.models.arguments import arguments
from softless.models.options import COMPANIONS
from softless.models.variants import add_entries, entries_of, first_of_each_host

# entry points of installed packages: a module that registers, or a record
GROUP = "softless.operators"


def register(record: Operator) -> type[Attention]:
    """Give an operator everything that the built-in ones have.

    From now on this process knows it by its name and by its class: `softless.attend(op=)`,
    `softless.Attention(op=)`, `timm.create_model(host, attn_layer=cls)`,
    `softless.create_model(host, op=)`, model names as `mine_deit_tiny_patch16_224` in timm, `swap`,
    `train`, `bench`, `optimize`, `stream`, `explain`, `cost`, `audit`, `list`, copies and pickles.
    Nothing is measured: `softless.testing.check_operator(record)` does that.

    An installed package registers itself by an entry point of the group "softless.operators" that
    names its module or its record.

    Args:
        record: `softless.attention.Operator`; once. The same record again changes nothing.

    Returns:
        The module class with the operator fixed, which is `softless.<title>` too.

    Raises:
        UsageError: a field is missing or wrong, a name is taken, an option shadows an argument of a
            host. The field is named.

    Examples:
        >>> from softless.attention import Claims, Identity, Operator, keep
        >>> def reference(q, k, v, *, mask=None, query_mask=None):
        ...     return keep(q, query_mask) @ (keep(k, mask).mT @ keep(v, mask))
        >>> flops = lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M)
        >>> record = Operator(Identity("plain", "no norm at all"), reference, Claims(flops))
        >>> cls = softless.register(record)
        >>> softless.Attention(64, 4, op="plain")(torch.ones(2, 5, 64)).shape
        torch.Size([2, 5, 64])
    """
    if isinstance(record, Operator) and OPERATORS.get(record.name) is record:
        return CLASSES[record.title]
    check_record(record)
    _check_taken(record)
    _check_shadows(record)
    add(record)
    add_class(record)
    add_entries(entries_of(record.name))
    return CLASSES[record.title]


def _check_taken(record: Operator) -> None:
    if record.name in OPERATORS:
        raise UsageError(
            f"identity.name='{record.name}' is taken by another operator: choose another, for "
            f"example Identity(name='my_{record.name}')"
        )
    if record.title in CLASSES:
        raise UsageError(
            f"operator '{record.name}': identity.title='{record.title}' is taken by operator "
            f"'{CLASSES[record.title].fixed_op}': "
            f"choose another, for example Identity(title='My{record.title}')"
        )
    if clashes := [name for name in entries_of(record.name) if is_model(name)]:
        raise UsageError(
            f"identity.name='{record.name}' gives models the name '{clashes[0]}', which timm has "
            "already: choose another name"
        )


def _check_shadows(record: Operator) -> None:
    """No option has the name of something that a host, a companion or `create_model` takes."""
    softmax = OPERATORS["softmax"].options
    for host in first_of_each_host():
        accepted = arguments(host, "softmax") or {}
        shadowed = [
            name
            for name in record.options
            if name in COMPANIONS or (name in accepted and name not in softmax)
        ]
        if shadowed:
            name = shadowed[0]
            raise UsageError(
                f"operator '{record.name}': options['{name}'] shadows an argument of the host "
                f"{host}: "
                f"give it another name, for example options={{'{record.name}_{name}': Option(…)}}"
            )


def register_installed(points: Iterable[EntryPoint] | None = None) -> None:
    """Register the operators of installed packages; one that cannot be is left out with a warning
    that names its package.
    """
    for point in entry_points(group=GROUP) if points is None else points:
        _register_point(point)


def _register_point(point: EntryPoint) -> None:
    try:
        loaded = point.load()
        if isinstance(loaded, Operator):
            register(loaded)
    # a broken package of somebody else's must not take softless with it
    except Exception as error:  # noqa: BLE001
        package = point.dist.name if point.dist else point.value
        warnings.warn(
            f"the operators of package '{package}' are left out ({point.value}): {error}",
            stacklevel=2,
        )
