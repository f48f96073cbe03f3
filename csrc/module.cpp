// fastconv._C: what Python asks about the CPU and about this build. The only pybind11 file, free of
// torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "build_info.h"
#include "csrc/cpu/features.h"

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

py::dict cache_sizes() {
  py::dict result;
  result["L1d"] = l1d_bytes();
  result["L2"] = l2_bytes();
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
  m.def("cache_sizes", &fastconv::cache_sizes, "Bytes of the data caches of one core.");
  m.def("build_info", &fastconv::build_info, "Versions, compiler and flags of this build.");
}
