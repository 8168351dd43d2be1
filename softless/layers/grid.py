"""Where the tokens of the pass at hand stand: the embedding of a host knows it, the attention modules behind timm's blocks need it."""

from softless.attention.spec import Grid


class SharedGrid:
    """One value that a host's embedding writes at each pass and its attention modules read.

    timm's blocks hand on tokens alone, and a number of tokens does not tell their grid: 224 x 896 and 448 x 448 pixels both make 784.
    """

    def __init__(self, value: Grid | None = None) -> None:
        self.value = value
