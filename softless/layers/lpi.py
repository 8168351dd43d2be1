"""Local patch interaction of XCiT (arXiv:2106.09681, section 3.3): two depthwise 3 x 3 convolutions
over the token grid.
"""

from collections.abc import Callable

from torch import Tensor, nn

from softless.layers.leaf import leaf
from softless.layers.plain import refuse_absent


class LPI(nn.Module):
    """(B, N, dim) -> (B, N, dim) for N = height x width tokens in row order.

    Depthwise 3 x 3, activation, BatchNorm, depthwise 3 x 3, as the official code does (the paper's
    prose has the norm first). Tokens are already channels-last, so the grid is a view of them and
    nothing is copied.
    """

    def __init__(
        self, dim: int, act_layer: Callable[[], nn.Module] = nn.GELU, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.act = act_layer()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    @leaf
    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Patch tokens x (B, height * width, dim) -> the same shape."""
        refuse_absent(x, conv1=self.conv1, conv2=self.conv2)
        # (B, dim, height, width), channels last in memory
        grid = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        grid = self.conv2(self.bn(self.act(self.conv1(grid))))
        return grid.permute(0, 2, 3, 1).flatten(1, 2)
