"""What the operators of ONNX are, and those that ONNX Runtime adds."""

from softless.measure.graphs.classes import operators

ONNX = operators(
    exp="Exp",
    softmax="""
        Softmax LogSoftmax ReduceLogSumExp SoftmaxCrossEntropyLoss Attention
    """,
    gelu="Gelu",
    sigmoid="Sigmoid LSTM GRU",
    silu="Swish SwiGLU",
    tanh="Tanh RNN",
    erf="Erf",
    elu="Elu Celu Selu",
    mish="Mish",
    softplus="Softplus",
    log="Log ReduceLogSum MelWeightMatrix",
    trigonometric="""
        Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh HannWindow HammingWindow
        BlackmanWindow
    """,
    power="Pow LRN LpPool GlobalLpPool",
    # LinearAttention and CausalConvWithState choose a decay or an activation by an attribute
    opaque="""
        RandomNormal RandomNormalLike Multinomial LinearAttention CausalConvWithState ImageDecoder
        ParametricSoftplus GRUUnit ScaledTanh DisentangledAttention_TRT EfficientNMS_TRT
        MultilevelCropAndResize_TRT PyramidROIAlign_TRT
    """,
    roots="""
        Sqrt ReduceL2 BatchNormalization InstanceNormalization GroupNormalization
        LayerNormalization RMSNormalization SimplifiedLayerNormalization MeanVarianceNormalization
        LpNormalization
    """,
    divisions="""
        Div Reciprocal Mean ReduceMean Softsign LpNormalization LayerNormalization
        RMSNormalization SimplifiedLayerNormalization BatchNormalization InstanceNormalization
        GroupNormalization MeanVarianceNormalization
    """,
    fused="Attention LSTM GRU RNN SoftmaxCrossEntropyLoss",
    plain="""
        Abs Add Affine AffineGrid And ArgMax ArgMin AveragePool Bernoulli BitCast BitShift
        BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil CenterCropPad Clip Col2Im
        Compress Concat ConcatFromSequence Constant ConstantOfShape Conv ConvInteger ConvTranspose
        Crop CumProd CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Dropout
        DynamicQuantizeLinear DynamicSlice Einsum Equal Expand EyeLike Flatten Floor Gather
        GatherElements GatherND Gemm GivenTensorFill GlobalAveragePool GlobalMaxPool Greater
        GreaterOrEqual GridSample HardSigmoid HardSwish Hardmax Identity If ImageScaler IsInf
        IsNaN LeakyRelu Less LessOrEqual Loop MatMul MatMulInteger Max MaxPool MaxRoiPool
        MaxUnpool MemcpyFromHost MemcpyToHost Min Mod Mul Neg NegativeLogLikelihoodLoss
        NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement OptionalHasElement Or
        PRelu Pad QLinearConv QLinearMatMul QuantizeLinear RandomUniform RandomUniformLike Range
        ReduceL1 ReduceMax ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Relu
        Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scale Scan Scatter
        ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase
        SequenceInsert SequenceLength SequenceMap Shape Shrink Sign Size Slice SpaceToDepth Split
        SplitToSequence Squeeze StringConcat StringNormalizer StringSplit Sub Sum TensorScatter
        TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where
        Xor
    """,
)

MACHINE_LEARNING = operators(  # ai.onnx.ml: trees and kernels, with a softmax or a logit behind
    opaque="""
        LinearClassifier LinearRegressor SVMClassifier SVMRegressor TreeEnsemble
        TreeEnsembleClassifier TreeEnsembleRegressor
    """,
    roots="Normalizer",
    divisions="Normalizer",
    plain="""
        ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer
        Imputer LabelEncoder OneHotEncoder Scaler ZipMap
    """,
)

PREVIEW = operators(
    softmax="FlexAttention",
    opaque="Gradient",
    roots="Adagrad Adam",
    divisions="Adagrad Adam",
    fused="FlexAttention",
    plain="Momentum",
)

MICROSOFT = operators(  # com.microsoft
    softmax="""
        Attention AttnLSTM BiasSoftmax DecoderAttention DecoderMaskedMultiHeadAttention
        DecoderMaskedSelfAttention DynamicSparseAttention GroupQueryAttention LongformerAttention
        MultiHeadAttention PackedAttention PackedMultiHeadAttention PagedAttention QAttention
        QLinearSoftmax QOrderedAttention QOrderedLongformerAttention SparseAttention
        SparsePagedAttention MoE MoEPacked QMoE
    """,
    gelu="BiasGelu BiasSplitGelu FastGelu Gelu GemmFastGelu QOrderedGelu QuickGelu",
    sigmoid="DynamicQuantizeLSTM QLinearSigmoid GatedRelativePositionBias MoEGroupRouter",
    silu="ScaledSiLU SwiGLU GatedRMSNorm",
    log="RelativePositionBias",  # its buckets of distances
    # whole decoders, sampling, compiled parts, mixers whose gates are not in their names
    opaque="""
        BeamSearch BifurcationDetector CausalConvWithState ConvStateReplay
        EPContext EngramGate GatedAdd GatedDeltaNet GatedDeltaNetStateReplay GreedySearch
        HyperConnectionLowRankMix HyperConnectionPostMix HyperConnectionPreMix LinearAttention
        LinearAttentionGate Mamba2Verify MatMulNBitsMlp PackedSparseAttentionIndexer
        PackedSparseAttentionIndexerMerge RouterGateUpProj SampleOp Sampling Snpe
        SparseAttentionIndexer SpeculativePrefixCommit VarlenCausalConvWithState
        WhisperBeamSearch WordConvEmbedding
    """,
    roots="""
        EmbedLayerNormalization GatedRMSNorm GroupNorm QEmbedLayerNormalization
        QOrderedLayerNormalization RMSNormRotary SkipGroupNorm SkipLayerNormalization
        SkipSimplifiedLayerNormalization CDist BranchwiseRMSNorm
    """,
    divisions="""
        Inverse QLinearReduceMean EmbedLayerNormalization GroupNorm QEmbedLayerNormalization
        QOrderedLayerNormalization RMSNormRotary SkipGroupNorm SkipLayerNormalization
        SkipSimplifiedLayerNormalization
    """,
    fused="""
        Attention AttnLSTM DecoderAttention DecoderMaskedMultiHeadAttention
        DecoderMaskedSelfAttention DynamicSparseAttention GroupQueryAttention LongformerAttention
        MultiHeadAttention PackedAttention PackedMultiHeadAttention PagedAttention QAttention
        QOrderedAttention QOrderedLongformerAttention SparseAttention SparsePagedAttention MoE
        MoEGroupRouter MoEPacked QMoE DynamicQuantizeLSTM GatedRelativePositionBias RelativePositionBias
    """,
    plain="""
        BiasAdd BiasDropout BitmaskBiasDropout BitmaskDropout ComplexMul ComplexMulConj
        ConvTransposeWithDynamicPads CropAndResize DequantizeBFP DequantizeLinear
        DequantizeWithOrder DynamicQuantizeMatMul DynamicTimeWarping ExpandDims FusedConv
        FusedGemm FusedMatMul FusedMatMulActivation GatherBlockQuantized GatherND
        GatherPacked GemmFloat8 GemmaRotaryEmbedding GridSample Irfft IsAllFinite
        MRotaryEmbedding MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulBnb4
        MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MatMulNBitsQLoRA
        MatMulNBitsQkv MatMulPacked MaxpoolWithMask MulInteger MurmurHash3 NGramHashMapping
        NGramRepeatBlock NhwcConv NhwcFusedConv NhwcMaxPool Pad QGemm QLinearAdd
        QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu
        QLinearMul QLinearWhere QOrderedMatMul QuantizeBFP QuantizeLinear QuantizeWithOrder Range
        ReduceSumInteger RemovePadding RestorePadding Rfft RotaryEmbedding
        SparseToDenseMatMul Tokenizer TorchEmbedding TransposeMatMul Trilu UnfoldTensor Unique
        VarlenNGramHashMapping
    """,
)

NCHWC = operators(  # com.microsoft.nchwc, of an optimised file: the same in another order
    plain="""
        AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput
        Upsample
    """
)

NHWC = operators(  # com.ms.internal.nhwc
    power="LRN LpPool GlobalLpPool",
    roots="BatchNormalization InstanceNormalization",
    divisions="BatchNormalization InstanceNormalization",
    plain="""
        AveragePool Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool GridSample
        MaxPool MaxUnpool QLinearAveragePool QLinearConv QLinearConvTranspose Resize SpaceToDepth
    """,
)

DOMAINS = {
    "": ONNX,
    "ai.onnx": ONNX,
    "ai.onnx.ml": MACHINE_LEARNING,
    "ai.onnx.preview": PREVIEW,
    "ai.onnx.preview.training": PREVIEW,
    "com.microsoft": MICROSOFT,
    "com.microsoft.nchwc": NCHWC,
    "com.ms.internal.nhwc": NHWC,
}

# activations that an operator carries as an attribute
ACTIVATIONS = {
    "sigmoid": "sigmoid",
    "logistic": "sigmoid",
    "tanh": "tanh",
    "scaledtanh": "tanh",
    "elu": "elu",
    "selu": "elu",
    "softplus": "softplus",
    "gelu": "gelu",
    "fastgelu": "gelu",
    "quickgelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "mish": "mish",
    "exp": "exp",
    "erf": "erf",
    "softmax": "softmax",
}
LINEAR = frozenset({
    "",
    *("relu", "relu6", "leakyrelu", "thresholdedrelu", "clip", "hardsigmoid", "hardswish"),
    *("affine", "identity", "linear", "none", "softsign", "abs"),
})
