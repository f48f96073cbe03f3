#include "depthwise.h"
#include "gemm.h"
#include "kernels.h"
#include "winograd.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

extern const KernelTable table;
const KernelTable table = {
#if defined(FASTCONV_ISA_AVX512)
    Isa::kAvx512,
#elif defined(FASTCONV_ISA_AVX2)
    Isa::kAvx2,
#elif defined(FASTCONV_ISA_NEON)
    Isa::kNeon,
#else
    Isa::kScalar,
#endif
    kDataType,
    pack_gemm,
#if defined(FASTCONV_BFLOAT16)
    nullptr,
#else
    pack_winograd,
#endif
    pack_depthwise,
    pointwise_conv2d,
    depthwise_conv2d,
    inverted_residual,
    squeeze_excite,
    conv2d_bias_act,
    pointwise_conv2d_pool,
    linear,
    max_pool,
    average_pool,
    train_pointwise_conv2d,
    train_pointwise_conv2d_backward,
    train_depthwise_conv2d,
    train_depthwise_conv2d_backward,
    train_normalize,
    train_normalized_mean,
    train_moments,
    train_gradient,
    train_gradient_sums,
    fma_peak,
};

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
