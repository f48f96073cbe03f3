// fastconv._C: what Python asks about the CPU, about this build, and about its own objects
// (watch.h). Nothing else uses pybind11; free of torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "build_info.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/features.h"
#include "csrc/cpu/plan.h"
#include "csrc/watch.h"

namespace py = pybind11;

namespace fastconv {
namespace {

py::dict features() {
  py::dict result;
  for (const auto& [name, value] : cpu_feature_list()) result[name] = value;
  return result;
}

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (Isa level : isa_levels()) names.push_back(isa_name(level));
  return names;
}

py::dict caches() {
  py::dict result;
  result["L1d"] = l1d_bytes();
  result["L2"] = l2_bytes();
  return result;
}

double measure_fma_peak(int level, double seconds) {
  const KernelTable* table = kernels_of(static_cast<Isa>(level));
  if (table == nullptr) throw py::value_error("measure_fma_peak: level must be one that runs here");
  const py::gil_scoped_release release;
  return table->fma_peak(seconds);
}

py::dict plan(int64_t height, int64_t width, int64_t in_channels, int64_t mid_channels,
              int64_t out_channels, int64_t kernel, int64_t stride, bool squeeze_excite,
              int64_t lanes, int64_t l1, int64_t l2) {
  InvertedResidualParams p{};
  DepthwiseConv2dParams& d = p.depthwise;
  d.height = height;
  d.width = width;
  d.channels = mid_channels;
  d.kernel_height = d.kernel_width = kernel;
  d.stride_height = d.stride_width = stride;
  d.dilation_height = d.dilation_width = 1;
  d.pad_top = d.pad_left = (kernel - 1) / 2;
  d.out_height = (height - 1) / stride + 1;
  d.out_width = (width - 1) / stride + 1;
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  const float expands = 0.f;
  if (mid_channels != in_channels) p.expand_packed = &expands;
  if (squeeze_excite) p.squeeze_excite.squeezed = 1;
  const InvertedResidualPlan plan =
      plan_inverted_residual(p, DataType::kFloat32, lanes, 2 * lanes, {l1, l2, 0});
  py::dict result;
  result["schedule"] = plan.ring ? "ring" : "chunks";
  result["rows_per_step"] = plan.rows_per_step;
  result["ring_rows"] = ring_rows(d, plan.rows_per_step);
  return result;
}

py::dict build_info() {
  py::dict result;
  result["version"] = FASTCONV_VERSION;
  result["commit"] = FASTCONV_COMMIT;
  result["compiler"] = FASTCONV_COMPILER;
  result["flags"] = FASTCONV_FLAGS;
  result["torch"] = FASTCONV_TORCH;
  result["cuda"] = FASTCONV_CUDA;
  return result;
}

}  // namespace
}  // namespace fastconv

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU features, chosen instruction set and build information of fastconv.";
  m.def("cpu_features", &fastconv::features, "Name -> whether this CPU has it.");
  m.def(
      "isa", [] { return fastconv::isa_name(fastconv::best_isa()); },
      "The level that the ops start with; RuntimeError if FASTCONV_ISA names an unusable one.");
  m.def("isa_levels", &fastconv::level_names, "The levels that this CPU runs, smallest first.");
  m.def("cache_sizes", &fastconv::caches, "Bytes of the data caches of one core.");
  m.def("measure_fma_peak", &fastconv::measure_fma_peak, py::arg("level"), py::arg("seconds"),
        "GFLOP/s of one thread that does nothing but FMAs at a level: 0 scalar, 1 avx2, 2 avx512, "
        "3 neon.");
  m.def("plan_inverted_residual", &fastconv::plan, py::arg("height"), py::arg("width"),
        py::arg("in_channels"), py::arg("mid_channels"), py::arg("out_channels"), py::arg("kernel"),
        py::arg("stride"), py::arg("squeeze_excite"), py::arg("lanes"), py::arg("l1"),
        py::arg("l2"), "How a fused block of these sizes is cut for caches of l1 and l2 bytes.");
  py::class_<fastconv::Watch>(m, "Watch", py::custom_type_setup(fastconv::let_collect))
      .def(py::init<py::list, py::list, py::list>(), py::arg("slots"), py::arg("sizes"),
           py::arg("tensors"))
      .def("holds", &fastconv::Watch::holds, "Whether everything still is what it was.");
  m.def(
      "reads_memory_of_tensors", [] { return fastconv::TensorLayout::get() != nullptr; },
      "Whether a Watch finds in memory what this PyTorch's tensors have as attributes.");
  m.def("build_info", &fastconv::build_info, "Versions, compiler and flags of this build.");
}
