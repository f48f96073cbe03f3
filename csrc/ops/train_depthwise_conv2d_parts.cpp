#include "../cuda/train_depthwise_tiling.h"
#include "check.h"

namespace fastconv {
namespace {

// sizes: N, C, H, W of the input. Returns the parts that fill a GPU, forward and backward.
Ints train_depthwise_conv2d_parts(const Ints& sizes, const Ints& kernel, const Ints& stride,
                                  const Ints& padding, const Ints& dilation, int64_t type,
                                  int64_t multiprocessors) {
  const char* op = "train_depthwise_conv2d_parts";
  bool there = sizes.size() == 4 && sizes[0] >= 0;
  for (std::size_t i = 1; there && i < 4; ++i) there = sizes[i] > 0;
  FASTCONV_CHECK(there, op, "sizes", "be N, C, H, W with C, H, W at least 1",
                 text(sizes.size(), " ints"));
  check_ints(op, "kernel", kernel, 2, 1);
  const bool known = type >= 0 && type <= static_cast<int64_t>(DataType::kFloat16);
  FASTCONV_CHECK(known, op, "type", "be 0, 1 or 2", type);
  FASTCONV_CHECK(multiprocessors > 0, op, "multiprocessors", "be at least 1", multiprocessors);
  const Sizes image{sizes[0], sizes[1], sizes[2], sizes[3]};
  const KernelSize size(kernel[0], kernel[1]);
  const Window over = check_window(op, image, size, stride, padding, dilation);
  TrainWindow w{};
  set_window(w, image, size, over, stride, padding);
  w.channels = image.channels;
  w.dilation_height = dilation[0];
  w.dilation_width = dilation[1];
  const bool pairs = w.channels % 2 == 0;
  const auto data_type = static_cast<DataType>(type);
  return {train_forward_tiling(w, data_type, pairs, multiprocessors).parts,
          train_backward_tiling(w, data_type, pairs, multiprocessors).parts};
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("train_depthwise_conv2d_parts", TORCH_BOX(&fastconv::train_depthwise_conv2d_parts));
}
