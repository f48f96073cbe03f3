// Whether a tensor still is what it was, told by its memory. PyTorch has no C interface for a
// tensor's version, and asking its Python attributes takes a quarter of a microsecond a tensor:
// more than a hundredth of a forward for the some hundred of a network. Where in memory the answers
// are is found out once, by looking at tensors of which they are known; where that fails, or when
// the memory is another, the attributes are asked.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <optional>

namespace fastconv {

namespace py = pybind11;

constexpr std::size_t kWord = sizeof(std::uint64_t);

inline std::uint64_t word_at(std::uintptr_t address) {
  std::uint64_t value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), kWord);
  return value;
}

inline std::uintptr_t address_of(const py::object& object) {
  return object.attr("_cdata").cast<std::uintptr_t>();
}

// Where PyTorch keeps what is compared, in bytes from the beginning of the object that has it.
struct TensorLayout {
  std::size_t implementation;    // Python's tensor: the address of the C++ one
  std::size_t storage, counter;  // the C++ tensor: the addresses of its storage and its version
  std::size_t end;               // ... and the end of its shape, strides and offset
  std::size_t version;           // the version: its number
  std::size_t data;              // the storage: the address of its data

  static constexpr std::size_t kBegin = 2 * kWord;  // of C++ objects, behind vtable and references

  // The one of this process; null if it is not what is expected.
  static const TensorLayout* get() {
    static std::optional<TensorLayout> found;
    static int left = 8;  // attempts: one fails where a mode is on that has no such tensors
    if (!found && left > 0) {
      --left;
      found = find();
    }
    return found ? &*found : nullptr;
  }

 private:
  // All of these objects are at least so large, in words.
  static constexpr std::size_t kPython = 4, kCpp = 20, kStorage = 8;

  // The only one of [first, last) words, as an offset; 0 for none or several.
  template <class F>
  static std::size_t only(std::size_t first, std::size_t last, const F& is_it) {
    std::size_t offset = 0;
    for (std::size_t i = first; i < last; ++i) {
      if (!is_it(i * kWord)) continue;
      if (offset != 0) return 0;
      offset = i * kWord;
    }
    return offset;
  }

  static std::optional<TensorLayout> find() {
    const py::module_ torch = py::module_::import("torch");
    // Tensors made in inference mode have no version.
    const py::object mode = torch.attr("inference_mode")(false);
    mode.attr("__enter__")();
    std::optional<TensorLayout> layout;
    try {
      layout = look_at(torch);
    } catch (py::error_already_set&) {  // a mode in which there are no such tensors
    }
    mode.attr("__exit__")(py::none(), py::none(), py::none());
    return layout;
  }

  static std::optional<TensorLayout> look_at(const py::module_& torch) {
    constexpr int kVersion = 7, kOffset = 12345;
    const py::object tensor = torch.attr("zeros")(kOffset + 3, py::arg("device") = "cpu");
    if (!py::type::of(tensor).is(torch.attr("Tensor"))) return std::nullopt;
    for (int i = 0; i < kVersion; ++i) tensor.attr("zero_")();
    // The same storage and version, the same storage, and neither.
    const py::object same = tensor.attr("detach")(), other = tensor.attr("data");
    const py::object copy = tensor.attr("clone")();
    const py::object part = tensor.attr("narrow")(0, kOffset, 2);
    const py::object storage_object = tensor.attr("untyped_storage")();
    const std::uintptr_t python = reinterpret_cast<std::uintptr_t>(tensor.ptr());
    const std::uintptr_t cpp = address_of(tensor), storage = address_of(storage_object);
    const std::uintptr_t cpp_same = address_of(same), cpp_other = address_of(other);
    const std::uintptr_t cpp_copy = address_of(copy), cpp_part = address_of(part);
    const auto data = tensor.attr("data_ptr")().cast<std::uint64_t>();

    TensorLayout layout{};
    layout.implementation =
        only(2, kPython, [&](std::size_t at) { return word_at(python + at) == cpp; });
    layout.storage = only(2, kCpp, [&](std::size_t at) {
      const std::uint64_t value = word_at(cpp + at);
      return value == storage && value == word_at(cpp_same + at) &&
             value == word_at(cpp_other + at) && value != word_at(cpp_copy + at);
    });
    layout.counter = only(2, kCpp, [&](std::size_t at) {
      const std::uint64_t value = word_at(cpp + at);
      return value != 0 && value == word_at(cpp_same + at) && value != word_at(cpp_other + at) &&
             value != word_at(cpp_copy + at);
    });
    const std::size_t offset =
        only(2, kCpp, [&](std::size_t at) { return word_at(cpp_part + at) == kOffset; });
    layout.end = offset + kWord;
    for (std::size_t i = 2; i < kStorage && layout.data == 0; ++i)
      if (word_at(storage + i * kWord) == data) layout.data = i * kWord;
    if (layout.implementation == 0 || layout.storage == 0 || layout.counter == 0 || offset == 0 ||
        layout.data == 0)
      return std::nullopt;

    const std::uintptr_t counter = word_at(cpp + layout.counter);
    constexpr std::size_t kHalf = kWord / 2, kEnd = 3 * kWord;
    for (std::size_t at = kWord; at < kEnd; at += kHalf)
      if (version_at(counter + at) == kVersion) layout.version = at;
    tensor.attr("zero_")();
    if (layout.version == 0 || version_at(counter + layout.version) != kVersion + 1)
      return std::nullopt;
    return layout;
  }

 public:
  static std::uint32_t version_at(std::uintptr_t address) {
    return __atomic_load_n(reinterpret_cast<const std::uint32_t*>(address), __ATOMIC_RELAXED);
  }
};

// What a tensor's memory says; nothing where that is not known.
class TensorMemory {
 public:
  TensorMemory() = default;
  // same: has the storage and the version of the tensor, and lives as long as this is used. Only
  // memory that then lives as long, and that says what the attributes say.
  TensorMemory(const py::object& tensor, const py::object& same,
               const std::optional<std::uint64_t>& version) {
    const TensorLayout* at = TensorLayout::get();
    if (at == nullptr) return;
    python_ = reinterpret_cast<std::uintptr_t>(tensor.ptr());
    const std::uintptr_t cpp = address_of(tensor), cpp_same = address_of(same);
    if (word_at(python_ + at->implementation) != cpp) return;
    for (const std::size_t shared : {at->storage, at->counter})
      if (word_at(cpp + shared) != word_at(cpp_same + shared)) return;
    storage_ = word_at(cpp + at->storage);
    counter_ = word_at(cpp + at->counter);
    const py::object storage = tensor.attr("untyped_storage")();
    const auto data = storage.attr("data_ptr")().cast<std::uint64_t>();
    if (address_of(storage) != storage_ || word_at(storage_ + at->data) != data) return;
    if (version.has_value() != (counter_ != 0)) return;
    if (version && TensorLayout::version_at(counter_ + at->version) != *version) return;
    cpp_ = cpp;
    said_ = sum(*at);
  }

  bool is_known() const { return cpp_ != 0; }

  // Whether it is known and says the same.
  bool holds() const {
    if (!is_known()) return false;
    const TensorLayout& at = *TensorLayout::get();
    return word_at(python_ + at.implementation) == cpp_ && sum(at) == said_;
  }

  // Calls f with the addresses and sizes of what holds() reads.
  template <class F>
  void each_region(const F& f) const {
    if (!is_known()) return;
    const TensorLayout& at = *TensorLayout::get();
    f(python_ + at.implementation, kWord);
    f(cpp_ + TensorLayout::kBegin, at.end - TensorLayout::kBegin);
    if (counter_ != 0) f(counter_ + at.version, sizeof(std::uint32_t));
    f(storage_ + at.data, kWord);
  }

 private:
  // A number that is another one if any of this changes.
  std::uint64_t sum(const TensorLayout& at) const {
    constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15;  // odd, without a pattern
    std::uint64_t sum = counter_ == 0 ? 0 : TensorLayout::version_at(counter_ + at.version);
    std::uint64_t factor = kFactor;
    const auto add = [&](std::uint64_t word) {
      sum += word * factor;
      factor *= kFactor;
    };
    for (std::size_t i = TensorLayout::kBegin; i < at.end; i += kWord) add(word_at(cpp_ + i));
    add(word_at(storage_ + at.data));
    return sum;
  }

  // Of Python's tensor, the C++ one, the version (0: it has none) and the storage.
  std::uintptr_t python_ = 0, cpp_ = 0, counter_ = 0, storage_ = 0;
  std::uint64_t said_ = 0;
};

// One tensor: its data stays where it is, its shape and strides are the same and its version stands
// still, if it has one: not in inference mode.
class WatchedTensor {
 public:
  explicit WatchedTensor(const py::object& tensor)
      : tensor_(tensor),
        // As long as its data lives, nothing else is put where that is.
        same_(tensor.attr("detach")()),
        shape_(tensor.attr("shape")),
        strides_(tensor.attr("stride")()),
        data_(data()) {
    try {
      version_ = version();
    } catch (py::error_already_set& error) {
      // Not only tensors made in inference mode have none: also those that were given the data of
      // one.
      if (!error.matches(PyExc_RuntimeError)) throw;
    }
  }

  bool holds() const {
    if (version_ && version() != *version_) return false;
    const py::object shape = tensor_.attr("shape"), strides = tensor_.attr("stride")();
    return data() == data_ && shape.equal(shape_) && strides.equal(strides_);
  }

  TensorMemory memory() const { return TensorMemory(tensor_, same_, version_); }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(tensor_.ptr());
    Py_VISIT(same_.ptr());
    return 0;
  }

 private:
  std::uint64_t data() const { return tensor_.attr("data_ptr")().cast<std::uint64_t>(); }
  std::uint64_t version() const { return tensor_.attr("_version").cast<std::uint64_t>(); }

  py::object tensor_, same_, shape_, strides_;
  std::uint64_t data_;
  std::optional<std::uint64_t> version_;
};

}  // namespace fastconv
