#include "scratch.h"

#include <cstdlib>
#include <new>

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

void* scratch(Scratch purpose, std::size_t bytes) {
  const int i = static_cast<int>(purpose);
  if (buffers.size[i] < bytes) {
    constexpr std::size_t kPage = 4096;
    const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    std::free(buffers.data[i]);
    buffers.size[i] = 0;
    buffers.data[i] = std::aligned_alloc(64, rounded);
    if (buffers.data[i] == nullptr) throw std::bad_alloc();
    buffers.size[i] = rounded;
  }
  return buffers.data[i];
}

}  // namespace fastconv
