#pragma once
// What this CPU can do, and which instruction set the kernels use. No Torch, no SIMD: compiled
// once, without ISA flags.

#include <string>
#include <utility>
#include <vector>

namespace fastconv {

// The levels of one architecture are ordered: a CPU that runs one runs every smaller one.
enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
  bool neon = false;  // part of every AArch64 CPU
};

const CpuFeatures& cpu_features();
// The same as (name, value) pairs, for display.
std::vector<std::pair<const char*, bool>> cpu_feature_list();

// "scalar", "avx2", "avx512" or "neon".
const char* isa_name(Isa isa);
// Whether this CPU runs the level and this build contains it.
bool isa_supported(Isa isa);
// Reads a name as isa_name writes it; returns false, and leaves *isa alone, on any other text.
bool parse_isa(const char* name, Isa* isa);
// Usable levels, smallest first.
std::vector<Isa> isa_levels();
// "scalar, avx2": the usable names, for messages.
std::string isa_level_names();
// The best supported level.
Isa isa_from_cpu();
// FASTCONV_ISA if it is set, else isa_from_cpu(). Throws std::runtime_error on a name that is
// unknown or unusable here.
Isa isa_from_environment();
// isa_from_environment(), read once per process; throws like it.
Isa best_isa();

// Sizes of the data caches of one core.
long l1d_bytes();
long l2_bytes();
// Of the cache that cores share; 0 if there is none, or nobody says.
long l3_bytes();

}  // namespace fastconv
