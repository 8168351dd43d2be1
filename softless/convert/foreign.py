"""Foreign attention that is kept: which classes a reader would expect to be told of, and why each
has no other in its place.
"""

from collections.abc import Mapping

from torch import nn

from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention

WINDOWS = "it attends within windows that its blocks cut and shift, so it never sees all tokens"
CUT = "it attends within windows that its block cuts, so it never sees all tokens"
PARTS = "it attends within windows and lattices that its block cuts, so it never sees all tokens"
BIASED = "a bias by relative position is added to its scores, which a sum over tokens does not have"
NO_SCORES = "it has no scores between tokens that another attention could give: "
CONVOLVED = "its q, k and v are convolutions of a map, and softless's attention is of tokens"
GATES = "it weighs channels or places of a map, and no token attends to another"
CHANNELS = "its channels attend to channels inside a block that has no place for tokens"
PARALLEL = (
    "its block makes attention and MLP from one projection, so there is no module to exchange"
)
POOLS = "it pools all tokens by queries of its own, and what takes its place attends to the tokens"

FOREIGN: Mapping[str, str] = {  # classes without an adapter, by name (or module and name), and why
    "WindowAttention": WINDOWS,
    "WindowMultiHeadAttention": WINDOWS,
    "AttentionCl": PARTS,
    "PartitionAttentionCl": PARTS,
    "PartitionAttention2d": PARTS,
    "timm.models.davit.WindowAttention": CUT,
    "CrossCovarianceAttn": CHANNELS,
    "timm.models.davit.ChannelAttention": CHANNELS,
    "timm.models.davit.ChannelAttentionV2": CHANNELS,
    "timm.models.levit.Attention": BIASED,
    "timm.models.levit.AttentionDownsample": BIASED,
    "timm.models.maxxvit.Attention2d": f"{CONVOLVED}, and a bias by position may join its scores",
    "timm.models.maxxvit.ParallelPartitionAttention": PARTS,
    "timm.models.gcvit.WindowAttentionGlobal": f"{CUT}, with queries of the whole image at times",
    "timm.models.twins.LocallyGroupedAttn": CUT,
    "timm.models.tiny_vit.Attention": f"{CUT}, and a bias by position is added to its scores",
    "timm.models.efficientvit_msra.LocalWindowAttention": CUT,
    "timm.models.efficientvit_msra.CascadedGroupAttention": f"{CUT}; its heads feed each other, "
    "and a bias by position is added to their scores",
    "timm.models.mvitv2.MultiScaleAttention": "it pools q, k and v by convolutions, adds biases of "
    "its queries by position to the scores, and its queries to the output",
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": "it pools its tokens before q, k and v, "
    "and adds biases of its queries by position to the scores",
    "timm.models.efficientformer_v2.Attention2d": "it mixes the weights of its heads (talking "
    "heads), adds a bias by position, and convolves v",
    "timm.models.efficientformer_v2.Attention2dDownsample": "its queries are fewer than its keys, "
    "a bias by position is added to the scores, and v is convolved",
    "timm.models.convit.GPSA": "its weights are a gated mean of two softmaxes, of scores and of "
    "positions, and a sum over tokens has no weights to mix",
    "timm.layers.diff_attention.DiffAttention": "it takes one softmax of two sets of queries and "
    "keys from another (differential attention), and no operator is such a difference",
    "timm.models.volo.OutlookAttention": "its weights come from the token in the middle of a small "
    "window alone, so there are no keys to attend to",
    "timm.models.nextvit.EfficientAttention": "its keys are means of runs of tokens past a batch "
    "norm, for which there is no adapter",
    "timm.models.nextvit.ConvAttention": f"{NO_SCORES}it is a grouped convolution",
    "timm.models.coat.FactorAttnConvRelPosEnc": "its softmax is over the tokens of each key "
    "channel, and a convolution of v is multiplied by its queries",
    "timm.models.visformer.Attention": CONVOLVED,
    "timm.models.lowformer.ConvAttention": CONVOLVED,
    "timm.models.cpubone.ConvAttention": CONVOLVED,
    "timm.models.shvit.SHSA": f"{CONVOLVED}, and most channels pass it by",
    "timm.models.efficientvit_mit.LiteMLA": f"{CONVOLVED}; it has no softmax as it is",
    "timm.layers.attention2d.Attention2d": CONVOLVED,
    "timm.layers.attention2d.MultiQueryAttention2d": f"{CONVOLVED}, and all heads share k and v",
    "timm.layers.attention2d.MultiQueryAttentionV2": f"{CONVOLVED}, and all heads share k and v",
    "timm.layers.bottleneck_attn.BottleneckAttn": f"{CONVOLVED}, and a bias of its queries by "
    "position is added to its scores",
    "timm.layers.halo_attn.HaloAttn": f"{CUT}, and a bias of its queries by position is added to "
    "its scores",
    "timm.layers.lambda_layer.LambdaLayer": f"{NO_SCORES}it makes linear maps of keys and places",
    "timm.layers.non_local_attn.NonLocalAttn": CONVOLVED,
    "timm.layers.non_local_attn.BilinearAttnTransform": f"{NO_SCORES}rows and columns are mixed by "
    "what a convolution says of them",
    "timm.layers.non_local_attn.BatNonLocalAttn": f"{NO_SCORES}rows and columns are mixed by what "
    "a convolution says of them",
    "timm.models.mobilevit.LinearSelfAttention": f"{NO_SCORES}one softmax over the tokens weighs "
    "all keys alike for every query",
    "timm.models.swiftformer.EfficientAdditiveAttention": f"{NO_SCORES}one weighted mean of the "
    "queries meets every key",
    "timm.models.gemma4_vit.Gemma4Attention": "its values are normalised and its queries and keys "
    "turned by tables of two sides, for which there is no adapter",
    "timm.models.vision_transformer.ParallelScalingBlock": PARALLEL,
    "timm.models.vision_transformer.DiffParallelScalingBlock": PARALLEL,
    "AttentionPoolLatent": POOLS,
    "AttentionPoolPrr": POOLS,
    "AttentionPool2d": POOLS,
    "RotAttentionPool2d": POOLS,
    "SplitAttn": GATES,
    "SelectiveKernelAttn": GATES,
    "ChannelAttn": GATES,
    "LightChannelAttn": GATES,
    "SpatialAttn": GATES,
    "LightSpatialAttn": GATES,
    "CoordAttn": GATES,
    "SimpleCoordAttn": GATES,
    "EfficientLocalAttn": GATES,
    "StripAttn": GATES,
    "timm.models.csatv2.SpatialAttention": GATES,
}


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def no_adapter(module: nn.Module) -> str:
    """Why a class without an adapter is kept."""
    name, qualified_name = type(module).__name__, _qualified(module)
    return FOREIGN.get(qualified_name, FOREIGN.get(name, f"no adapter for {qualified_name}"))


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module that has no adapter is one a user would expect to be told of."""
    name = type(module).__name__
    if isinstance(module, Attention | ClassAttention):
        return False
    named = ("attention" in name.lower() or name.endswith("Attn")) and "block" not in name.lower()
    return named or _qualified(module) in FOREIGN
