"""Image to tokens: the rule on sizes, and XCiT's convolutional stem."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from softless.attention.recording import known
from softless.errors import UsageError
from softless.layers.leaf import leaf, noted
from softless.layers.plain import refuse_absent


def check_size(height: int, width: int, patch: tuple[int, int]) -> None:
    """Height and width must be whole numbers of patches.

    Raises:
        UsageError: they are not; the message offers the nearest sizes that are.
    """
    if (
        height >= patch[0]
        and width >= patch[1]
        and height % patch[0] == 0
        and width % patch[1] == 0
    ):
        return
    near = " x ".join(
        str(max(1, round(side / p)) * p) for side, p in zip((height, width), patch, strict=True)
    )
    rule = (
        f"multiples of {patch[0]}"
        if patch[0] == patch[1]
        else f"multiples of {patch[0]} and {patch[1]}"
    )
    raise UsageError(
        f"image is {height} x {width} but patches are {patch[0]} x {patch[1]}: height and width "
        f"must be {rule}, for example {near}"
    )


@noted
def fitting(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """The images (B,C,H,W), whose sides are whole numbers of patches; a graph that is recorded asks
    at each call.

    Raises:
        UsageError: they are not, by `check_size`; what `torch.jit.trace` recorded raises torch's
            own error of `unflatten`.
    """
    if not torch.jit.is_tracing():
        check_size(images.shape[-2], images.shape[-1], patch)
        return images
    for dim, side in zip((2, 3), patch, strict=True):  # views, which no other size passes
        images = images.unflatten(dim, (-1, side)).flatten(dim, dim + 1)
    return images


def refuse_empty(images: Tensor) -> None:
    """Some hosts of timm reshape by what is left over, which says nothing where there is no image,
    and BatchNorm has no mean of none.

    Raises:
        UsageError: a batch (0, C, H, W).
    """
    if known(images.shape[0]) and not images.shape[0]:
        raise UsageError(
            f"a batch of no images, {tuple(images.shape)}: this model needs at least one; leave "
            "the call out"
        )


class ConvPatchEmbed(nn.Module):
    """XCiT's stem: 3 x 3 convolutions of stride 2 with BatchNorm, (B, C, H, W) ->
    (B, H W / patch^2, dim) and the grid.

    Patch 16 has four convolutions (widths dim/8, dim/4, dim/2, dim), patch 8 three; an activation
    stands between them, none after.

    Raises:
        UsageError: a patch other than 8 or 16, or an image that is not a whole number of patches.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        if patch_size not in {8, 16}:
            raise UsageError(f"patch_size={patch_size}: XCiT's stem has patches of 8 or 16 pixels")
        self.patch_size = patch_size
        self.set_input_size((img_size, img_size) if isinstance(img_size, int) else img_size)
        widths = [embed_dim // 2**i for i in reversed(range(4 if patch_size == 16 else 3))]
        layers: list[nn.Module] = []
        for before, after in zip([in_chans, *widths], widths, strict=False):
            conv = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(after)), act_layer()]
        self.proj = nn.Sequential(*layers[:-1])

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """The size the model reports; images of any other size that fits are taken as well."""
        check_size(*img_size, (self.patch_size, self.patch_size))
        self.img_size = img_size
        self.grid_size = (img_size[0] // self.patch_size, img_size[1] // self.patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token, as timm's feature extractors ask."""
        return self.patch_size if as_scalar else (self.patch_size, self.patch_size)

    @leaf
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images x (B,C,height,width) -> tokens (B,N,dim), and rows and columns of their grid."""
        refuse_empty(x)
        refuse_absent(x, **dict(self.proj.named_modules(prefix="proj")))
        x = fitting(x, (self.patch_size, self.patch_size))
        # faster, and the last map is tokens as it lies; in training the ranks' smaller batches
        # would round differently
        if not self.training:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
