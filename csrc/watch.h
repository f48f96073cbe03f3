// Whether Python objects still are what they were: a network asks this of some hundred tensors and
// settings before each forward. They are in no cache then, and touched one by one they would cost
// a twentieth of the forward; so their memory is asked for all at once, before anything is
// compared.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "watch_tensor.h"

namespace fastconv {

// CPython gives a dict a new number at every change, up to 3.11: one look at it, and none at the
// entries. Later versions do not promise it.
#if PY_VERSION_HEX < 0x030C0000
constexpr bool kDictsHaveVersions = true;
inline std::uint64_t version_of(PyObject* dict) {
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
}
#else
constexpr bool kDictsHaveVersions = false;
inline std::uint64_t version_of(PyObject*) { return 0; }
#endif

class Watch {
 public:
  // slots: (dict, key, value): that dict has this very value there; where value is Ellipsis, none.
  // sizes: (dict, size). tensors: as WatchedTensor.
  Watch(const py::list& slots, const py::list& sizes, const py::list& tensors) {
    for (const py::handle item : slots) {
      const auto [dict, key, value] = item.cast<std::tuple<py::dict, py::str, py::object>>();
      const bool absent = value.ptr() == Py_Ellipsis;
      watched(dict).slots.push_back({key, absent ? py::object() : value});
    }
    for (const py::handle item : sizes) {
      const auto [dict, size] = item.cast<std::pair<py::dict, Py_ssize_t>>();
      watched(dict).size = size;
    }
    for (const py::handle item : tensors) {
      tensors_.emplace_back(py::reinterpret_borrow<py::object>(item));
      memory_.push_back(tensors_.back().memory());
      memory_.back().each_region(
          [&](std::uintptr_t at, std::size_t bytes) { watch_memory(at, bytes); });
    }
    lines_.assign(distinct_.begin(), distinct_.end());
    distinct_.clear();
    places_.clear();
  }

  bool holds() {
    if (cleared_) return false;
    for (const std::uintptr_t line : lines_)
      __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      Seen& seen = seen_[i];
      const std::uint64_t version = version_of(seen.dict);
      if (kDictsHaveVersions && version == seen.version) continue;
      if (!dicts_[i].holds()) return false;
      seen.version = version;
    }
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      if (memory_[i].holds()) continue;
      if (!tensors_[i].holds()) return false;
      // What changed was nothing of this. Memory that was not known is not looked for again.
      if (memory_[i].is_known()) memory_[i] = tensors_[i].memory();
    }
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Dict& dict : dicts_) {
      Py_VISIT(dict.dict.ptr());
      for (const Slot& slot : dict.slots) Py_VISIT(slot.value.ptr());
    }
    for (const WatchedTensor& tensor : tensors_)
      if (const int stop = tensor.traverse(visit, arg)) return stop;
    return 0;
  }

  void clear() {
    cleared_ = true;
    // Moved out first: what dies here may look at this object.
    const auto dicts = std::exchange(dicts_, {});
    const auto tensors = std::exchange(tensors_, {});
  }

 private:
  struct Slot {
    py::str key;
    py::object value;  // null: absent
  };
  struct Dict {
    py::dict dict;
    std::vector<Slot> slots;
    Py_ssize_t size = -1;  // -1: any

    bool holds() const {
      if (size >= 0 && PyDict_Size(dict.ptr()) != size) return false;
      for (const Slot& slot : slots) {
        const PyObject* now = PyDict_GetItemWithError(dict.ptr(), slot.key.ptr());
        if (now == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
        if (now != slot.value.ptr()) return false;
      }
      return true;
    }
  };
  void watch_memory(std::uintptr_t address, std::size_t bytes) {
    constexpr std::uintptr_t kLine = 64;
    for (std::uintptr_t line = address / kLine; line <= (address + bytes - 1) / kLine; ++line)
      distinct_.insert(line * kLine);
  }
  void watch_memory(const void* address, std::size_t bytes) {
    watch_memory(reinterpret_cast<std::uintptr_t>(address), bytes);
  }

  Dict& watched(const py::dict& dict) {
    const auto [place, is_new] = places_.try_emplace(dict.ptr(), dicts_.size());
    if (is_new) {
      dicts_.push_back({dict, {}});
      seen_.push_back({dict.ptr(), 0});
      watch_memory(dict.ptr(), sizeof(PyDictObject));
      if (!kDictsHaveVersions)
        watch_memory(reinterpret_cast<PyDictObject*>(dict.ptr())->ma_keys, 256);
    }
    return dicts_[place->second];
  }

  bool cleared_ = false;  // by the garbage collector: nothing is watched any more
  std::vector<Dict> dicts_;
  std::vector<WatchedTensor> tensors_;
  // Of dicts_ and tensors_, all that is looked at where nothing has changed.
  struct Seen {
    PyObject* dict;
    std::uint64_t version;  // 0: never compared
  };
  std::vector<Seen> seen_;
  std::vector<TensorMemory> memory_;
  // While this is made: where a dict is in dicts_, and the lines.
  std::map<const PyObject*, std::size_t> places_;
  std::set<std::uintptr_t> distinct_;
  // Cache lines of all this, as they lay at first. Prefetching one that is gone does no harm.
  std::vector<std::uintptr_t> lines_;
};

// The Watch inside a Python object; null while it is being made.
inline Watch* constructed(PyObject* self) {
  const auto holder = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
  return holder.holder_constructed() ? py::cast<Watch*>(py::handle(self)) : nullptr;
}

// Python's garbage collector sees through a Watch: a module's own Watch refers to the module.
inline void let_collect(PyHeapTypeObject* heap_type) {
  PyTypeObject* type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const Watch* watch = constructed(self);
    return watch == nullptr ? 0 : watch->traverse(visit, arg);
  };
  type->tp_clear = [](PyObject* self) {
    if (Watch* watch = constructed(self)) watch->clear();
    return 0;
  };
}

}  // namespace fastconv
