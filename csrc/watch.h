// Whether Python objects still are what they were: a network asks this of some hundred tensors and
// settings before each forward. They are in no cache then, and touched one by one they would cost
// a twentieth of the forward; so their memory is asked for all at once, before anything is
// compared. Only CPython's own interface is used: of a tensor, its attributes.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace fastconv {

namespace py = pybind11;

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
  // sizes: (dict, size). tensors: their data stays where it is and their version counters stand
  // still, where they have one: not in inference mode.
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
    for (const py::handle item : tensors) watch_tensor(py::reinterpret_borrow<py::object>(item));
    lines_.assign(distinct_.begin(), distinct_.end());
    distinct_.clear();
    places_.clear();
  }

  bool holds() {
    if (cleared_) return false;
    for (const std::uintptr_t line : lines_)
      __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
    for (Dict& dict : dicts_) {
      const std::uint64_t version = version_of(dict.dict.ptr());
      if (kDictsHaveVersions && version == dict.version) continue;
      if (!dict.holds()) return false;
      dict.version = version;
    }
    for (const Counted& t : tensors_) {
      if (t.counted && version(t.tensor) != t.version) return false;
      if (data_ptr(t.tensor) != t.data_ptr) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Dict& dict : dicts_) {
      Py_VISIT(dict.dict.ptr());
      for (const Slot& slot : dict.slots) Py_VISIT(slot.value.ptr());
    }
    for (const Counted& t : tensors_) {
      Py_VISIT(t.tensor.ptr());
      Py_VISIT(t.data.ptr());
    }
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
    Py_ssize_t size = -1;       // -1: any
    std::uint64_t version = 0;  // 0: never compared

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
  struct Counted {
    py::object tensor, data;
    bool counted;
    std::uint64_t version, data_ptr;
  };

  static std::uint64_t number(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    const std::uint64_t value = PyLong_AsUnsignedLongLong(result);
    Py_DECREF(result);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return value;
  }
  std::uint64_t version(const py::object& tensor) const {
    return number(version_->get(tensor.ptr(), version_->closure));
  }
  // Not only tensors made in inference mode have none: also those that were given the data of one.
  bool has_version(const py::object& tensor) const {
    try {
      version(tensor);
      return true;
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_RuntimeError)) throw;
      return false;
    }
  }
  std::uint64_t data_ptr(const py::object& tensor) const {
    return number(data_ptr_(tensor.ptr(), nullptr));
  }

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
      watch_memory(dict.ptr(), sizeof(PyDictObject));
      if (!kDictsHaveVersions)
        watch_memory(reinterpret_cast<PyDictObject*>(dict.ptr())->ma_keys, 256);
    }
    return dicts_[place->second];
  }

  // What the tensors' class calls for an attribute and a method, without the way there.
  void find_functions(const py::object& type) {
    const py::object version = type.attr("_version"), data_ptr = type.attr("data_ptr");
    const bool known = Py_IS_TYPE(version.ptr(), &PyGetSetDescr_Type) &&
                       Py_IS_TYPE(data_ptr.ptr(), &PyMethodDescr_Type);
    const PyMethodDef* method =
        known ? reinterpret_cast<PyMethodDescrObject*>(data_ptr.ptr())->d_method : nullptr;
    if (!known || method->ml_flags != METH_NOARGS)
      throw py::type_error("Watch: tensors must be tensors");
    version_ = reinterpret_cast<PyGetSetDescrObject*>(version.ptr())->d_getset;
    data_ptr_ = method->ml_meth;
  }

  void watch_tensor(const py::object& tensor) {
    if (version_ == nullptr) find_functions(py::type::of(tensor));
    const bool counted = has_version(tensor);
    // As long as its data lives, nothing else is put where that is.
    const py::object data = tensor.attr("detach")();
    tensors_.push_back({tensor, data, counted, counted ? version(tensor) : 0, data_ptr(tensor)});
    watch_memory(tensor.ptr(), 64);
    const auto inside = tensor.attr("_cdata").cast<std::uintptr_t>();
    watch_memory(inside, 192);
    // It begins with pointers: to its version counter among others, which have no name in Python.
    std::uintptr_t words[8];
    std::memcpy(words, reinterpret_cast<const void*>(inside), sizeof words);
    for (const std::uintptr_t word : words) watch_memory(word, 32);
    watch_memory(tensor.attr("untyped_storage")().attr("_cdata").cast<std::uintptr_t>(), 128);
  }

  bool cleared_ = false;                  // by the garbage collector: nothing is watched any more
  const PyGetSetDef* version_ = nullptr;  // of the tensors' class, which lives as long as they
  PyCFunction data_ptr_ = nullptr;
  std::vector<Dict> dicts_;
  std::vector<Counted> tensors_;
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
