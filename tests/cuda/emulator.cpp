#include "emulator.h"

#include <thread>

namespace emulator {

Block::Block(unsigned threads, std::size_t shared_bytes)
    : barrier(threads), shared(new unsigned char[shared_bytes]) {
  std::memset(shared.get(), 0xff, shared_bytes);  // NaN as float, half and bfloat16
  for (unsigned begin = 0; begin < threads; begin += kWarp)
    warps.push_back(std::make_unique<Warp>(threads - begin < kWarp ? threads - begin : kWarp));
}

void run(dim3 grid, unsigned threads, std::size_t shared_bytes,
         const std::function<void()>& thread) {
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  std::unique_ptr<Block> current;
  std::barrier<> all(threads);
  const auto body = [&](unsigned index) {
    threadIdx = {index, 0, 0};
    blockDim = dim3(threads);
    gridDim = grid;
    for (std::uint64_t i = 0; i < blocks; ++i) {
      all.arrive_and_wait();
      if (index == 0) current = std::make_unique<Block>(threads, shared_bytes);
      all.arrive_and_wait();
      block = current.get();
      blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                  static_cast<unsigned>(i / grid.x / grid.y)};
      thread();
      // A thread that returns is not waited for any more.
      Warp& own = warp();
      block->barrier.arrive_and_drop();
      own.barrier.arrive_and_drop();
    }
  };
  std::vector<std::thread> pool;
  for (unsigned index = 0; index < threads; ++index) pool.emplace_back(body, index);
  for (std::thread& one : pool) one.join();
}

}  // namespace emulator
