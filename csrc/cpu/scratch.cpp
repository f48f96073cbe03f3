#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv {
namespace {

struct Buffers {
  void* data[kScratchCount] = {};
  std::size_t size[kScratchCount] = {};
  ~Buffers() {
    for (void* p : data) std::free(p);
  }
};

thread_local Buffers buffers;

}  // namespace

void prefer_huge_pages(void* data, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  // A refusal changes nothing but speed.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void* scratch(Scratch purpose, std::size_t bytes) {
  const int i = static_cast<int>(purpose);
  if (buffers.size[i] < bytes) {
    constexpr std::size_t kPage = 4096;
    const bool large = bytes >= kHugePage / 2;
    const std::size_t unit = large ? kHugePage : kPage;
    const std::size_t rounded = (bytes + unit - 1) / unit * unit;
    std::free(buffers.data[i]);
    buffers.size[i] = 0;
    buffers.data[i] = std::aligned_alloc(large ? kHugePage : 64, rounded);
    if (buffers.data[i] == nullptr) throw std::bad_alloc();
    prefer_huge_pages(buffers.data[i], rounded);
    buffers.size[i] = rounded;
  }
  return buffers.data[i];
}

}  // namespace fastconv
