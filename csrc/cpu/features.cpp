#include "csrc/cpu/features.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace fastconv {
namespace {

constexpr Isa kAllLevels[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kNeon};
constexpr long kDefaultL1d = 32 * 1024;
constexpr long kDefaultL2 = 512 * 1024;

CpuFeatures detect() {
  CpuFeatures f;
#if defined(__x86_64__)
  // libgcc also asks XGETBV: a feature whose registers the system does not save counts as absent.
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2");
  f.fma = __builtin_cpu_supports("fma");
  f.avx512f = __builtin_cpu_supports("avx512f");
  f.avx512bw = __builtin_cpu_supports("avx512bw");
  f.avx512dq = __builtin_cpu_supports("avx512dq");
  f.avx512vl = __builtin_cpu_supports("avx512vl");
  f.avx512vnni = __builtin_cpu_supports("avx512vnni");
  f.avx512bf16 = __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  f.neon = true;
#endif
  return f;
}

long cache_bytes([[maybe_unused]] int name, long fallback) {
  const long size = sysconf(name);
  return size > 0 ? size : fallback;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

std::vector<std::pair<const char*, bool>> cpu_feature_list() {
  const CpuFeatures& f = cpu_features();
  return {{"avx2", f.avx2},
          {"fma", f.fma},
          {"avx512f", f.avx512f},
          {"avx512bw", f.avx512bw},
          {"avx512dq", f.avx512dq},
          {"avx512vl", f.avx512vl},
          {"avx512vnni", f.avx512vnni},
          {"avx512bf16", f.avx512bf16},
          {"neon", f.neon}};
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

bool isa_supported(Isa isa) {
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma;
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
#if defined(FASTCONV_WITHOUT_AVX512)
      return false;
#endif
      return avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
    case Isa::kNeon:
      return f.neon;
  }
  return false;
}

bool parse_isa(const char* name, Isa* isa) {
  for (Isa level : kAllLevels) {
    if (std::strcmp(name, isa_name(level)) == 0) {
      *isa = level;
      return true;
    }
  }
  return false;
}

std::vector<Isa> isa_levels() {
  std::vector<Isa> levels;
  for (Isa level : kAllLevels) {
    if (isa_supported(level)) levels.push_back(level);
  }
  return levels;
}

std::string isa_level_names() {
  std::string names;
  for (Isa level : isa_levels()) {
    if (!names.empty()) names += ", ";
    names += isa_name(level);
  }
  return names;
}

Isa isa_from_cpu() { return isa_levels().back(); }

Isa isa_from_environment() {
  const char* name = std::getenv("FASTCONV_ISA");
  if (name == nullptr || *name == '\0') return isa_from_cpu();
  Isa isa;
  if (!parse_isa(name, &isa) || !isa_supported(isa)) {
    throw std::runtime_error("FASTCONV_ISA must be one of " + isa_level_names() +
                             " on this CPU, got " + name);
  }
  return isa;
}

Isa best_isa() {
  static const Isa isa = isa_from_environment();
  return isa;
}

long l1d_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const long size = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, kDefaultL1d);
  return size;
#else
  return kDefaultL1d;
#endif
}

long l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long size = cache_bytes(_SC_LEVEL2_CACHE_SIZE, kDefaultL2);
  return size;
#else
  return kDefaultL2;
#endif
}

long l3_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const long size = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 0);
  return size;
#else
  return 0;
#endif
}

}  // namespace fastconv
