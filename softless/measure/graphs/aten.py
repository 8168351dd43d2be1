"""The operators of PyTorch, which .pt2 and .pte files name; their kinds stand in `exps.KINDS`."""

from typing import Any

import torch

from softless.measure.exps import KINDS
from softless.measure.findings import OPAQUE

ROOTS = frozenset({
    "sqrt",
    "rsqrt",
    "std",
    "std_mean",
    "hypot",
    "norm",
    "cosine_similarity",
    "linalg_norm",
    "linalg_vector_norm",
    "linalg_cholesky_ex",
    "native_layer_norm",
    "native_group_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "native_batch_norm",
})
# native kernels: products, sums and one division by the norms; nothing transcendental
OURS = frozenset({
    "attend",
    "attend_packed",
    "moments",
    "centred",
    "self_attention",
    "sums",
})
DIVISIONS = frozenset({
    "attend",
    "attend_packed",
    "div",
    "true_divide",
    "reciprocal",
    "mean",
    "rsqrt",
})
# products, sums, comparisons, moves; factors of a Fourier transform depend on the size alone
PLAIN_NAMES = """
    __and__ __iand__ __ilshift__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rshift__
    __xor__ _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _add_relu
    _aminmax _assert_async _assert_scalar _assert_tensor_metadata _batch_norm_impl_index
    _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional
    _cholesky_solve_helper _chunk_cat _compute_linear_combination _conj _conj_physical
    _conv_depthwise2d _convolution _convolution_mode _cummax_helper _cummin_helper
    _efficientzerotensor _embedding_bag _embedding_bag_forward_only _empty_affine_quantized
    _empty_per_channel_affine_quantized _euclidean_dist
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fft_c2c _fft_c2r _fft_r2c
    _functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _fw_primal _grid_sampler_2d_cpu_fallback
    _grouped_mm _has_same_storage_numel _index_put_impl _indices _int_mm _is_all_true
    _is_any_true _linalg_check_errors _linalg_det _linalg_eigh _linalg_eigvals _linalg_solve_ex
    _linalg_svd _local_scalar_dense _make_dual _make_per_channel_quantized_tensor
    _make_per_tensor_quantized_tensor _masked_scale _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _neg_view
    _new_zeros_with_same_feature_meta _nnz _pack_padded_sequence _padded_dense_to_jagged_forward
    _pin_memory _prelu_kernel _reshape_alias _reshape_copy _resize_output _scaled_grouped_mm
    _scaled_grouped_mm_v2 _scaled_mm _scaled_mm_v2 _shape_as_tensor _slow_conv2d_forward _stack
    _to_copy _to_dense _transform_bias_rescale_qkv _trilinear _unique _unique2 _unsafe_index
    _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _values abs absolute adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint
    affine_grid_generator alias all allclose alpha_dropout amax amin aminmax any arange argmax
    argmin argsort as_strided as_strided_scatter avg_pool1d avg_pool2d avg_pool2d_backward
    avg_pool3d baddbmm batch_norm bernoulli bilinear bincount bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm broadcast_tensors
    broadcast_to bucketize can_cast cat ccol_indices ceil chain_matmul channel_shuffle
    cholesky_inverse cholesky_solve choose_qparams_optimized chunk clamp clamp_max clamp_min
    clip clone col2im col_indices column_stack complex concat concatenate conj conj_physical
    constant_pad_nd contiguous conv1d conv2d conv3d conv_depthwise3d conv_tbc conv_transpose1d
    conv_transpose2d conv_transpose3d convolution convolution_backward
    convolution_backward_overrideable convolution_overrideable copy copysign cosine_similarity
    count_nonzero cross crow_indices cudnn_convolution cummax cummin cumprod cumsum
    cumulative_trapezoid deg2rad dense_dim dequantize det detach diag diag_embed diagonal
    diagonal_scatter diff div divide dot dropout dsplit dstack einsum embedding embedding_bag
    embedding_dense_backward empty empty_like empty_permuted empty_quantized empty_strided eq
    equal expand expand_as eye fake_quantize_per_channel_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine
    fake_quantize_per_tensor_affine_cachemask feature_dropout fft_fftfreq fft_rfftfreq fill fix
    flatten flip fliplr flipud floor floor_divide fmax fmin fmod frac fractional_max_pool2d
    fractional_max_pool3d frexp full full_like gather gcd ge geqrf greater greater_equal
    grid_sampler grid_sampler_2d grid_sampler_3d group_norm gt hardshrink hardsigmoid hardswish
    hardtanh heaviside hinge_embedding_loss histc histogram hsplit hstack huber_loss hypot
    im2col imag index index_add index_fill index_put index_reduce index_select indices inner
    instance_norm int_repr inverse is_coalesced is_complex is_floating_point is_nonzero
    is_pinned is_same_size is_set_to isfinite isin isinf isnan isneginf isposinf isreal item
    kron kthvalue l1_loss layer_norm lcm le leaky_relu lerp less less_equal lift lift_fresh
    linalg_cholesky_ex linalg_cross linalg_det linalg_diagonal linalg_householder_product
    linalg_inv linalg_inv_ex linalg_lu linalg_lu_factor_ex linalg_lu_solve linalg_matrix_power
    linalg_multi_dot linalg_qr linalg_solve linalg_solve_triangular linear linspace logical_and
    logical_not logical_or logical_xor lt lu_unpack mH mT masked_fill masked_scatter
    masked_select matmul matrix_power max max_pool1d max_pool2d max_pool2d_with_indices
    max_pool2d_with_indices_backward max_pool3d max_pool3d_with_indices max_unpool2d
    max_unpool3d maximum mean median meshgrid min minimum mkldnn_convolution mm mode moveaxis
    movedim mse_loss msort mul multi_margin_loss multilabel_margin_loss_forward multiply mv
    nan_to_num nanmean nanmedian nansum narrow native_batch_norm native_channel_shuffle
    native_dropout native_group_norm native_group_norm_backward native_layer_norm
    native_layer_norm_backward ne neg negative new_empty new_empty_strided new_full new_ones
    new_zeros nextafter nll_loss nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero
    nonzero_numpy nonzero_static not_equal numpy_T one_hot ones ones_like ormqr outer pad
    permute pixel_shuffle pixel_unshuffle positive prelu prod promote_types put qscheme
    quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic rad2deg rand rand_like
    randint randint_like random randperm range ravel real reciprocal record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resize resize_as resolve_conj resolve_neg result_type rms_norm roll rot90 round row_indices
    row_stack rrelu_with_noise rrelu_with_noise_functional rsqrt rsub scalar_tensor scatter
    scatter_add scatter_reduce searchsorted segment_reduce select select_scatter set sgn
    shallow_copy_data sign signbit size slice slice_inverse slice_scatter slow_conv3d_forward
    slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d
    smooth_l1_loss softshrink sort split split_with_sizes sqrt square squeeze stack std std_mean
    stride sub subtract sum sum_to_size swapaxes swapdims sym_constrain_range
    sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset
    sym_stride t take take_along_dim tensor_split tensordot threshold tile to to_padded_tensor
    topk trace transpose trapz triangular_solve tril tril_indices triu triu_indices true_divide
    trunc type_as unbind unflatten unfold uniform unique_consecutive unique_dim
    unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d values vander var var_mean vdot
    view view_as view_as_complex view_as_real vsplit vstack where zero zeros zeros_like
"""
PLAIN = frozenset(PLAIN_NAMES.split())
# random draws by functions that a table does not count, and what has several forms
HIDDEN = frozenset({"randn", "randn_like", "normal", "log_normal", "exponential", "multinomial"})
# other libraries of operators, by their names with the library before
OTHER_NAMES = """
    quantized_decomposed::quantize_per_tensor quantized_decomposed::dequantize_per_tensor
    quantized_decomposed::quantize_per_channel quantized_decomposed::dequantize_per_channel
    quantized_decomposed::quantize_per_token quantized_decomposed::dequantize_per_token
    quantized_decomposed::quantize_per_channel_group
    quantized_decomposed::dequantize_per_channel_group quantized_decomposed::choose_qparams
    quantized_decomposed::choose_qparams_symmetric
    quantized_decomposed::choose_qparams_per_token_asymmetric
    quantized_decomposed::_choose_qparams_per_token_asymmetric_impl
    quantized_decomposed::embedding_byte quantized_decomposed::embedding_4bit
    quantized_decomposed::mixed_mm quantized_decomposed::mixed_linear
    torchao::quantize_affine torchao::dequantize_affine torchao::choose_qparams_affine
    dim_order_ops::_to_dim_order_copy dim_order_ops::_empty_dim_order
    dim_order_ops::_clone_dim_order
    executorch_prim::add executorch_prim::sub executorch_prim::mul executorch_prim::floordiv
    executorch_prim::truediv executorch_prim::mod executorch_prim::neg executorch_prim::eq
    executorch_prim::ne executorch_prim::lt executorch_prim::le executorch_prim::gt
    executorch_prim::ge executorch_prim::ceil executorch_prim::round executorch_prim::trunc
    executorch_prim::sym_float executorch_prim::sym_max executorch_prim::sym_min
    executorch_prim::et_copy_index executorch_prim::et_view
    prim::device prim::dtype prim::layout
    prims::convert_element_type prims::broadcast_in_dim prims::iota prims::device_put
    prims::view_of prims::view_of_dtype
    profiler::_record_function_enter_new profiler::_record_function_exit
    profiler::_record_function_enter
"""
OTHERS = frozenset(OTHER_NAMES.split())


def plain(name: str) -> str:
    """The name of what is computed: in place or not, a copy or a view."""
    if name.endswith("__"):
        return name
    name = name.removesuffix("_")
    return name if name == "_to_copy" else name.removesuffix("_copy")


def known(name: str) -> bool:
    """Whether a table says what an operator of the library aten is."""
    base = plain(name)
    return bool({name, base} & KINDS.keys()) or base in PLAIN | ROOTS | HIDDEN


def kind_of(namespace: str, name: str, args: tuple[Any, ...]) -> tuple[str, int] | None:
    """Kind and number of evaluations of an operator, or None where it has none.

    What no table knows is opaque.
    """
    if namespace == "softless" and name in OURS:
        return None
    if namespace != "aten":
        return None if f"{namespace}::{name}" in OTHERS else (OPAQUE, 1)
    kind = KINDS.get(name) or KINDS.get(plain(name))
    if kind is None:
        return None if plain(name) in PLAIN | ROOTS else (OPAQUE, 1)
    number = kind[1](args)
    return (kind[0], number) if isinstance(number, torch.SymInt) or number else None
