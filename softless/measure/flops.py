"""FLOPs of what runs, by formulas of our own: the same number whatever the version of torch knows.

A FLOP is a multiplication or an addition of a matrix product or a convolution, two for each
multiply-add. Products over masked or padded places count in full. Element by element arithmetic,
norms, sums, resampling and lookups count nothing, and nor do factorisations and triangular solves
(a Cholesky of the landmarks, say), for which the field has no count of multiply-adds.

An operator is looked up in this order: a formula here; a formula that its owner registered with
torch. What torch calls pointwise or a view; the list of operators without products; its
decomposition. What is left may hold a product and is named.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Formula = Callable[..., int]  # the operator's arguments, and `out`, what it returned


def _mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _added_mm(_: Any, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _mv(a: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel()


def _added_mv(_: Any, a: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel()


def _outer(_: Any, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel() * b.numel()


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _linear_of_packed(x: Tensor, _: Any, weight: Tensor, *__: Any, **___: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _convolution(_: Tensor, weight: Tensor, *__: Any, out: Any, **___: Any) -> int:
    """Each number of the output is a sum over the kernel's places and a group's channels."""
    return 2 * out.numel() * prod(weight.shape[1:])


def _general_convolution(x: Tensor, weight: Tensor, *rest: Any, out: Any, **_: Any) -> int:
    transposed = rest[4]  # after bias, stride, padding and dilation
    return 2 * (x if transposed else out).numel() * prod(weight.shape[1:])


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> int:
    transposed = named.get("transposed", rest[4] if len(rest) > 4 else False)
    output_mask = named.get("output_mask", rest[-1])
    return (
        sum(map(bool, output_mask[:2]))
        * 2
        * (x if transposed else grad).numel()
        * prod(weight.shape[1:])
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """q kᵀ and its product with v, over all pairs: (…,H,N,D), (…,M,D), (…,M,E)."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_: Any, q: Tensor, k: Tensor, v: Tensor, *__: Any, **___: Any) -> int:
    """The scores anew, then the gradients of q and k (D each), of v and of the weights (E each)."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


def _attention_by_tokens(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return _attention(*(x.transpose(1, 2) for x in (q, k, v)))


def _multi_head(q: Tensor, k: Tensor, _: Any, width: int, *__: Any, **___: Any) -> int:
    """torch's fast path of nn.MultiheadAttention: four projections and the attention between
    them.
    """
    B, N, D = q.shape
    M = k.shape[1]
    return 2 * B * (2 * N + 2 * M) * D * width + 4 * B * N * M * width


def _encoder_layer(x: Tensor, width: int, *rest: Any, **__: Any) -> int:
    """torch's fast path of nn.TransformerEncoderLayer: the same, and two linear layers."""
    hidden = rest[12].shape[0]
    return _multi_head(x, x, x, width) + 4 * x.numel() * hidden


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    dict.fromkeys(("aten::mm", "aten::bmm", "aten::_scaled_mm", "aten::_int_mm"), _mm)
    | dict.fromkeys(
        ("aten::addmm", "aten::_addmm_activation", "aten::baddbmm", "aten::addbmm"), _added_mm
    )
    | dict.fromkeys(("aten::mv", "aten::dot", "aten::vdot"), _mv)
    | {"aten::addmv": _added_mv, "aten::addr": _outer}
    | dict.fromkeys(("aten::linear", "aten::mkldnn_linear", "mkldnn::_linear_pointwise"), _linear)
    | {"mkl::_mkl_linear": _linear_of_packed}
    | dict.fromkeys(
        (
            "aten::_convolution",
            "aten::convolution",
            "aten::convolution_overrideable",
        ),
        _general_convolution,
    )
    | dict.fromkeys(
        (
            "aten::_conv_depthwise2d",
            "aten::_slow_conv2d_forward",
            "aten::conv1d",
            "aten::conv2d",
            "aten::conv3d",
            "aten::conv_depthwise3d",
            "aten::cudnn_convolution",
            "aten::cudnn_convolution_add_relu",
            "aten::cudnn_convolution_relu",
            "aten::miopen_convolution",
            "aten::miopen_depthwise_convolution",
            "aten::mkldnn_convolution",
            "aten::mps_convolution",
            "aten::slow_conv3d_forward",
            "aten::slow_conv_dilated2d",
            "aten::slow_conv_dilated3d",
            "aten::thnn_conv2d",
            "mkldnn::_convolution_pointwise",
        ),
        _convolution,
    )
    | {"aten::convolution_backward": _convolution_backward}
    | dict.fromkeys(
        (
            "aten::scaled_dot_product_attention",
            "aten::_scaled_dot_product_attention_math",
            "aten::_scaled_dot_product_attention_math_for_mps",
            "aten::_scaled_dot_product_cudnn_attention",
            "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    )
    | dict.fromkeys(
        (
            "aten::_scaled_dot_product_cudnn_attention_backward",
            "aten::_scaled_dot_product_efficient_attention_backward",
            "aten::_scaled_dot_product_flash_attention_backward",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
            "aten::_scaled_dot_product_fused_attention_overrideable_backward",
        ),
        _attention_backward,
    )
    | {
        "aten::_efficient_attention_forward": _attention_by_tokens,
        "aten::_native_multi_head_attention": _multi_head,
        "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    }
)

# Without a product, by name: what torch does not itself call pointwise or a view.
FREE = frozenset([
    "_adaptive_avg_pool2d",
    "_batch_norm_with_update",
    "_cdist_forward",
    "_copy_from",
    "_copy_from_and_resize",
    "_fused_rms_norm",
    "_local_scalar_dense",
    "_log_softmax",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_reshape_alias",
    "_safe_softmax",
    "_softmax",
    "_to_copy",
    "_unsafe_index",
    "_unsafe_index_put",
    "_unsafe_view",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact1d",
    "adaptive_max_pool2d",
    "affine_grid_generator",
    "all",
    "amax",
    "amin",
    "aminmax",
    "floor_divide",
    "any",
    "arange",
    "argmax",
    "argmin",
    "argsort",
    "as_strided",
    "avg_pool2d",
    "avg_pool3d",
    "bernoulli",
    "bincount",
    "bucketize",
    "cat",
    "clone",
    "col2im",
    "constant_pad_nd",
    "convert_element_type",
    "copy",
    "copy_",
    "count_nonzero",
    "cummax",
    "cumprod",
    "cumsum",
    "cudnn_batch_norm",
    "detach",
    "diag_embed",
    "embedding",
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "equal",
    "expand",
    "eye",
    "fill",
    "flip",
    "full",
    "full_like",
    "gather",
    "glu",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "histc",
    "im2col",
    "index",
    "index_add",
    "index_copy",
    "index_fill",
    "index_put",
    "index_select",
    "isin",
    "item",
    "kthvalue",
    "lift_fresh",
    "lift_fresh_copy",
    "linspace",
    "log_sigmoid_forward",
    "logsumexp",
    "logspace",
    "masked_fill",
    "masked_scatter",
    "masked_select",
    "max",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "mean",
    "median",
    "min",
    "mkldnn_max_pool2d",
    "mode",
    "multinomial",
    "nan_to_num",
    "nansum",
    "native_batch_norm",
    "native_channel_shuffle",
    "native_dropout",
    "native_group_norm",
    "native_layer_norm",
    "new_empty",
    "new_empty_strided",
    "new_full",
    "new_ones",
    "new_zeros",
    "nonzero",
    "norm",
    "normal",
    "one_hot",
    "ones",
    "ones_like",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "prod",
    "put",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "range",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "repeat",
    "repeat_interleave",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "resize",
    "roll",
    "rot90",
    "scalar_tensor",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "searchsorted",
    "select_backward",
    "select_scatter",
    "set_",
    "slice_backward",
    "slice_scatter",
    "sort",
    "split_with_sizes_copy",
    "stack",
    "std",
    "std_mean",
    "sum",
    "sym_size",
    "sym_stride",
    "tensor",
    "topk",
    "tril",
    "tril_indices",
    "triu",
    "triu_indices",
    "unfold_backward",
    "uniform",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_linear1d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_trilinear3d",
    "var",
    "var_mean",
    "view_copy",
    "zero",
    "zeros",
    "zeros_like",
    "_softmax_backward_data",
    "_log_softmax_backward_data",
    "native_layer_norm_backward",
    "native_batch_norm_backward",
    "native_group_norm_backward",
    "native_dropout_backward",
    "embedding_dense_backward",
    "avg_pool2d_backward",
    "max_pool2d_with_indices_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_nearest2d_backward",
    "_adaptive_avg_pool2d_backward",
    "constant_pad_nd_backward",
    "linalg_vector_norm",
    "dist",
    "cummin",
])

# Factorisations and triangular solves: no count of multiply-adds is in use for them.
FACTORS = frozenset([
    "cholesky",
    "cholesky_inverse",
    "cholesky_solve",
    "geqrf",
    "linalg_cholesky_ex",
    "linalg_eigh",
    "linalg_inv_ex",
    "linalg_ldl_factor_ex",
    "linalg_lu_factor_ex",
    "linalg_lu_solve",
    "linalg_qr",
    "linalg_solve_triangular",
    "triangular_solve",
    "_linalg_det",
    "_linalg_eigh",
    "_linalg_slogdet",
    "_linalg_solve_ex",
    "_linalg_svd",
])

# Of other libraries.
FREE_ELSEWHERE = frozenset({"torchvision::nms", "torchvision::roi_align", "torchvision::roi_pool"})


class FlopCounter(TorchDispatchMode):
    """Counts while active: `with FlopCounter() as counter: model(x)`, then `counter.total`.

    Attributes:
        total: FLOPs, two for each multiply-add.
        by_operator: the same for each operator that has any.
        uncounted: operators that ran, may hold a product and have no formula; `total` lacks theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()
        self.uncounted: set[str] = set()

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = f"{func.namespace}::{func.overloadpacket.__name__}"
        formula = FORMULAS.get(name) or FORMULAS.get(name.removesuffix("_"))
        if formula is None and not _free(func, name):
            if registered := _registered(func):
                out = func(*args, **kwargs)
                self.by_operator[name] += registered(*args, **kwargs, out_val=out)
                return out
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self.uncounted.add(name)
        out = func(*args, **kwargs)
        if formula is not None:
            self.by_operator[name] += int(formula(*args, **kwargs, out=out))
        return out


def _registered(func: Any) -> Formula | None:
    """The formula that an operator's owner gave to torch; that of torch's own operators stand
    here.
    """
    module = sys.modules.get("torch.utils.flop_counter")  # whoever registers has imported it
    formula: Formula | None = module.flop_registry.get(func.overloadpacket) if module else None
    return formula


def _free(func: Any, name: str) -> bool:
    """Whether an operator is known to hold no product."""
    if torch.Tag.pointwise in func.tags or func.is_view:
        return True
    namespace, _, plain = name.partition("::")
    if namespace in {"prim", "prims", "profiler"}:
        return True
    if namespace != "aten":
        return name in FREE_ELSEWHERE
    return bool({plain, plain.removesuffix("_")} & (FREE | FACTORS))
