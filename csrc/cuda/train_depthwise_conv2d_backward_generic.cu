// The gradients of any depthwise convolution: an input pixel at a time for its gradient, and then
// all pixels of the output for each tap of the weight's.
#include "dispatch.cuh"
#include "train_depthwise_conv2d_backward.cuh"

namespace fastconv {
namespace {

struct KernelParams {
  CudaTrainDepthwiseConv2dBackwardParams p;
  TrainTiling tiling;
};

// Adds up what the strips of a block have and stores a row of its part.
__device__ void store_row(const KernelParams& k, const TrainPlace& place, float sum, int64_t row) {
  float* shared = shared_memory<float>();  // [strips, lanes]
  __syncthreads();                         // what was there has been read
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (place.strip != 0 || !place.active) return;
  float total = 0;
  for (int s = 0; s < k.tiling.strips; ++s) total += shared[s * k.tiling.lanes + place.lane];
  k.p.partial[(place.part * k.p.rows() + row) * k.p.conv.window.channels + place.channel] = total;
}

template <class T>
class GenericBackward {
 public:
  __device__ GenericBackward(const KernelParams& k, const TrainPlace& place)
      : k_(k),
        c_(k.p.conv),
        w_(k.p.conv.window),
        place_(place),
        affine_(c_.input.affine, place.active ? place.channel : 0, w_.channels),
        raw_affine_(c_.gradient.affine, place.active ? place.channel : 0, w_.channels) {}

  __device__ void run() {
    int64_t row = k_.p.weight_rows();
    if (c_.grad_weight != nullptr) {
      for (int64_t tap = 0; tap < row; ++tap) store_row(k_, place_, weight_sum(tap), tap);
    }
    if (c_.grad_bias != nullptr) {
      float sum = 0;
      each_output([&](int64_t image, int64_t y, int64_t x) { sum += gradient(image, y, x); });
      store_row(k_, place_, sum, row++);
    }
    float sums[2] = {};
    if (c_.grad_input != nullptr) input_gradient(sums);
    if (c_.sums == nullptr) return;
    store_row(k_, place_, sums[0], row);
    store_row(k_, place_, sums[1], row + 1);
  }

 private:
  // f(image, y, x) for the thread's pixels of rows [begin, end) of all images.
  template <class F>
  __device__ void each_pixel(int64_t begin, int64_t end, int64_t height, int64_t width,
                             const F& f) {
    for (int64_t pixel = begin * width + place_.strip; place_.active && pixel < end * width;
         pixel += k_.tiling.strips) {
      const int64_t row = pixel / width;
      f(row / height, row % height, pixel % width);
    }
  }
  template <class F>
  __device__ void each_output(const F& f) {
    const int64_t rows = w_.batch * w_.out_height, part = place_.part;
    each_pixel(rows * part / k_.tiling.parts, rows * (part + 1) / k_.tiling.parts, w_.out_height,
               w_.out_width, f);
  }

  __device__ float gradient(int64_t image, int64_t y, int64_t x) const {
    const int64_t at =
        ((image * w_.out_height + y) * w_.out_width + x) * w_.channels + place_.channel;
    const GradientMap& map = c_.gradient;
    float g = to_float(static_cast<const T*>(map.grad)[at]);
    if (map.raw == nullptr) return g;
    const float v = to_float(static_cast<const T*>(map.raw)[at]);
    const int64_t c = place_.channel, of_image = image * w_.channels + c;
    if (map.gate != nullptr) g *= map.gate[of_image];
    if (map.offset != nullptr) g += map.offset[of_image];
    g *= activation_slope<T>(map.activation, v * raw_affine_.scale[0] + raw_affine_.shift[0]);
    const float* k = map.coefficients;
    if (k == nullptr) return g;
    const int64_t n = w_.channels;
    return k[c] * g + k[n + c] * (v - k[2 * n + c]) + k[3 * n + c];
  }

  __device__ int64_t input_at(int64_t image, int64_t y, int64_t x) const {
    return ((image * w_.height + y) * w_.width + x) * w_.channels + place_.channel;
  }

  __device__ float weight_sum(int64_t tap) {
    const int64_t ky = tap / w_.kernel_width, kx = tap % w_.kernel_width;
    float sum = 0;
    each_output([&](int64_t image, int64_t y, int64_t x) {
      const int64_t in_y = y * w_.stride_height - w_.pad_top + ky * w_.dilation_height;
      const int64_t in_x = x * w_.stride_width - w_.pad_left + kx * w_.dilation_width;
      if (in_y < 0 || in_y >= w_.height || in_x < 0 || in_x >= w_.width) return;
      float value = to_float(static_cast<const T*>(c_.input.data)[input_at(image, in_y, in_x)]);
      if (c_.input.affine != nullptr)
        value = activate<T>(c_.input.activation, value * affine_.scale[0] + affine_.shift[0]);
      sum += value * gradient(image, y, x);
    });
    return sum;
  }

  __device__ void input_gradient(float (&sums)[2]) {
    const float mean = c_.mean == nullptr || !place_.active ? 0.0f : c_.mean[place_.channel];
    each_pixel(
        place_.begin, place_.end, w_.height, w_.width, [&](int64_t image, int64_t y, int64_t x) {
          float d = 0;
          for (int64_t ky = 0; ky < w_.kernel_height; ++ky) {
            const int64_t over_y = y + w_.pad_top - ky * w_.dilation_height;
            const int64_t out_y = over_y / w_.stride_height;
            if (over_y < 0 || over_y % w_.stride_height != 0 || out_y >= w_.out_height) continue;
            for (int64_t kx = 0; kx < w_.kernel_width; ++kx) {
              const int64_t over_x = x + w_.pad_left - kx * w_.dilation_width;
              const int64_t out_x = over_x / w_.stride_width;
              if (over_x < 0 || over_x % w_.stride_width != 0 || out_x >= w_.out_width) continue;
              const int64_t tap = ky * w_.kernel_width + kx;
              d += c_.packed[tap * w_.channels + place_.channel] * gradient(image, out_y, out_x);
            }
          }
          finish(input_at(image, y, x), d, mean, sums);
        });
  }

  __device__ void finish(int64_t at, float d, float mean, float (&sums)[2]) const {
    if (c_.input.affine != nullptr) {
      const float x = to_float(static_cast<const T*>(c_.input.data)[at]);
      d *= activation_slope<T>(c_.input.activation, x * affine_.scale[0] + affine_.shift[0]);
      sums[0] += d;
      sums[1] += d * (x - mean);
    }
    if (c_.residual != nullptr) d += to_float(static_cast<const T*>(c_.residual)[at]);
    static_cast<T*>(c_.grad_input)[at] = from_float<T>(d);
  }

  const KernelParams& k_;
  const TrainDepthwiseConv2dBackwardParams& c_;
  const TrainWindow& w_;
  const TrainPlace& place_;
  const Affine<1> affine_, raw_affine_;
};

template <class T>
__global__ void __launch_bounds__(kTrainGenericSizes.threads)
    generic_train_depthwise_backward_kernel(const KernelParams k) {
  const TrainPlace place = train_place(k.tiling, k.p.conv.window.channels, 1);
  GenericBackward<T>(k, place).run();
}

}  // namespace

const char* launch_generic_train_depthwise_conv2d_backward(
    const CudaTrainDepthwiseConv2dBackwardParams& p, const TrainTiling& tiling, void* stream) {
  return with_type(p.type, [&](auto zero) {
    return launch(generic_train_depthwise_backward_kernel<decltype(zero)>, train_grid(tiling),
                  tiling.threads, tiling.threads * sizeof(float), stream, KernelParams{p, tiling});
  });
}

}  // namespace fastconv
