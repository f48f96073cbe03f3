// Fully connected layer: the matrix product of gemm.h with images as pixels. One image is bound by
// reading the weight.
#include <algorithm>

#include "gemm.h"
#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

void linear(const LinearParams& p, const Threads& threads) {
  const Panels panels(p.out_features);
  const GemmA a{elements(p.input), p.in_features, p.in_features, 0, p.in_features};
  const GemmC c = gemm_map(elements(p.output), p.out_features);
  const int64_t parts = std::min(threads.count, panels.count);
  threads.parallel(parts, [&](int64_t i) {
    const Share share(panels.count, parts, i);
    gemm(a, {p.packed + kPackedHeader, /*cold=*/true, {}}, panels, p.batch, c,
         {p.activation, nullptr, 0}, share.begin, share.end, /*single_pixel=*/p.batch == 1);
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
