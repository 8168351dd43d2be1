"""Names that recipes had once.

They stay: on the command line, in `get_recipe`, and in the recipe.json of runs that were begun
under them.
"""

ALIASES = {"folder": "classify"}  # old -> today's


def canonical(name: str) -> str:
    """The name that a recipe has today.

    >>> canonical("folder"), canonical("digits")
    ('classify', 'digits')
    """
    return ALIASES.get(name, name)
