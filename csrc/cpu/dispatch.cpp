#include "dispatch.h"

#include <atomic>

namespace fastconv {

namespace scalar {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
#if !defined(FASTCONV_WITHOUT_AVX512)
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
extern const KernelTable table;
}
#endif
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable table;
}
#endif

namespace {
std::atomic<const KernelTable*> selected{nullptr};
}

const KernelTable* kernels_of(Isa isa, DataType type) {
  if (!isa_supported(isa)) return nullptr;
  if (type == DataType::kBfloat16) {
#if defined(__x86_64__) && !defined(FASTCONV_WITHOUT_AVX512)
    if (isa == Isa::kAvx512 && cpu_features().avx512bf16) return &avx512_bf16::table;
#endif
    return nullptr;
  }
  switch (isa) {
#if defined(__x86_64__)
#if !defined(FASTCONV_WITHOUT_AVX512)
    case Isa::kAvx512:
      return &avx512::table;
#endif
    case Isa::kAvx2:
      return &avx2::table;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return &neon::table;
#endif
    case Isa::kScalar:
      return &scalar::table;
    default:
      return nullptr;
  }
}

bool select_isa(Isa isa) {
  const KernelTable* table = kernels_of(isa);
  if (table == nullptr) return false;
  selected.store(table, std::memory_order_release);
  return true;
}

const KernelTable& kernels() {
  const KernelTable* table = selected.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = kernels_of(best_isa());
    selected.store(table, std::memory_order_release);
  }
  return *table;
}

const KernelTable* kernels_for(DataType type) {
  const KernelTable& table = kernels();
  return type == table.type ? &table : kernels_of(table.isa, type);
}

}  // namespace fastconv
