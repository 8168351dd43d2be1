"""A recipe as YAML: what a run was told, and fields in a file in place of `--set`.

A file that names a `recipe` sets fields of it, nested or dotted:

    recipe: classify
    data: {path: my_images}
    optim.lr: 3e-4

One that has a `name` holds every field, as `recipe.yaml` of a run does.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from softless.errors import UsageError
from softless.experiment.recipe import Recipe, as_json, flat_fields, restored

ENDINGS = (".yaml", ".yml")
LARGEST = 1 << 20  # bytes: more is no file of settings
BASE, WHOLE = "recipe", "name"  # the key of a recipe to start from, and that of a complete one
HEAD = "# every field of this run; it is trained again by: softless train --config recipe.yaml\n"


@dataclass(frozen=True)
class Configuration:
    """What a YAML file says of a run.

    Attributes:
        path: the file.
        base: the name of the recipe that the fields belong to; None leaves it to the caller.
        fields: dotted fields and their values.
        complete: the recipe, where the file holds every field.
    """

    path: Path
    base: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    complete: Recipe | None = None


class _Loader(yaml.SafeLoader):
    """YAML's plain values; a key that stands twice is refused, and so is a part that stands for
    another (`*name`), which a few lines can make endless.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise UsageError(
                f"line {self.peek_event().start_mark.line + 1} refers to another part by `*`: "
                "write the part out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, Hashable) and keys.count(key) > 1:
                raise UsageError(
                    f"'{key}' stands twice (line {node.start_mark.line + 1} and below): leave "
                    "one out"
                )
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 reads 3e-4 as a text, 1:30 as 90, 0777 as 511, and on and off as true and false: here
# numbers are numbers, and words are words
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] == "null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def read_configuration(path: Path) -> Configuration:
    """Read a YAML file of a recipe or of fields.

    Raises:
        UsageError: there is none; it is no YAML, has other than settings, or a field twice.
    """
    content = _parsed(path)
    if WHOLE in content:
        if BASE in content:
            raise UsageError(
                f"{path} has both '{WHOLE}' (a complete recipe) and '{BASE}' (the recipe that "
                "fields are set of): leave one out"
            )
        try:
            return Configuration(path, complete=restored(content))
        except (UsageError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: {error}") from error
    base = content.pop(BASE, None)
    if base is not None and not isinstance(base, str):
        raise UsageError(f"{path}: '{BASE}' names the recipe that its fields are set of")
    try:
        return Configuration(path, base, _dotted(content))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no file {path}: name a YAML file of settings")
    if path.stat().st_size > LARGEST:
        raise UsageError(f"{path} is larger than a file of settings can be (1 MiB)")
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save it as YAML in UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{path} is no YAML: {line}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(
            f"{path} holds no settings: it must be lines of `field: value`, among them "
            f"`{BASE}: NAME`"
        )
    return content


def _dotted(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by dotted name, of groups in groups."""
    return flat_fields({name: _plain(value) for name, value in content.items()})


def _plain(value: Any) -> Any:
    """Lists as the tuples that fields hold."""
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def written(recipe: Recipe) -> str:
    """A complete recipe as YAML, which `read_configuration` reads back."""
    text = yaml.dump(as_json(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88)
    return HEAD + str(text)


class _Dumper(yaml.SafeDumper):
    """Quotes what this file's reader would take for a number, and nothing that it takes for a
    word.
    """


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
