// What tells whether something is as it was, and whether nothing looks at operations as such.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>

#include <cstring>

#include "glue.h"

namespace {

// Whether it is a plain tensor of torch.
bool is_plain(const Tensor& tensor) {
  const c10::DispatchKeySet keys = tensor.key_set();
  const bool other = keys.has_any(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::Functionalize, c10::DispatchKey::Conjugate, c10::DispatchKey::Negative}));
  return !other && tensor.layout() == at::kStrided && !tensor._fw_grad(0).defined();
}

// Whether something looks at operations as such.
bool is_watched() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  const bool mode = included.has_any(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
       c10::DispatchKey::Functionalize}));
  return mode || at::impl::torch_function_mode_enabled() || at::tracer::impl::is_dispatch_enabled();
}

using Numbers = std::vector<int64_t>;

// Type and device.
int64_t kind_of(const Tensor& tensor) {
  const auto device = tensor.device();
  return static_cast<int64_t>(tensor.scalar_type()) | static_cast<int64_t>(device.type()) << 16 |
         static_cast<int64_t>(device.has_index() ? device.index() + 1 : 0) << 32;
}

// Type and device of each, and how often it was written to in place.
Numbers state_of(const variable_list& tensors) {
  Numbers found;
  found.reserve(2 * tensors.size());
  for (const Tensor& tensor : tensors) {
    found.push_back(kind_of(tensor));
    found.push_back(tensor.is_inference() ? 0 : tensor._version());
  }
  return found;
}

int64_t address_of(const Tensor& tensor) { return reinterpret_cast<int64_t>(tensor.const_data_ptr()); }

// What a kernel that reads addresses was launched for, added to `look`.
void add_look(Numbers& look, const Tensor& tensor) {
  look.push_back(kind_of(tensor));
  look.push_back(address_of(tensor));
  look.push_back(tensor.is_contiguous());
  for (const int64_t size : tensor.sizes()) look.push_back(size);
}

// And of those whose addresses it is given.
void add_look_apart(Numbers& look, const Tensor& tensor) {
  look.push_back(kind_of(tensor));
  look.push_back(address_of(tensor) % 16);
  for (const int64_t size : tensor.sizes()) look.push_back(size);
  for (const int64_t stride : tensor.strides()) look.push_back(stride);
}

// Whether each of some dictionaries has a value: dictionary, key, value, ...; -1 on an error.
int entries_hold(PyObject* entries) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries); i += 3) {
    PyObject* found = PyDict_GetItemWithError(PyList_GET_ITEM(entries, i), PyList_GET_ITEM(entries, i + 1));
    if (found != PyList_GET_ITEM(entries, i + 2)) return PyErr_Occurred() ? -1 : 0;
  }
  return 1;
}

// holds(entries)
PyObject* holds(PyObject*, PyObject* entries) {
  const int found = entries_hold(entries);
  return found < 0 ? nullptr : PyBool_FromLong(found);
}

// kinds_of(tensors): bytes that say type and device of each
PyObject* kinds_of(PyObject*, PyObject* tensors) {
  HANDLE_TH_ERRORS
  Numbers found;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++)
    found.push_back(kind_of(THPVariable_Unpack(PyList_GET_ITEM(tensors, i))));
  return PyBytes_FromStringAndSize(
      reinterpret_cast<const char*>(found.data()), static_cast<Py_ssize_t>(found.size() * sizeof(int64_t)));
  END_HANDLE_TH_ERRORS
}

// same_values(tensors, others): whether tensors in memory of the host have the same types, shapes and
// bits; None where they are not plain
PyObject* same_values(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Py_ssize_t number = PyList_GET_SIZE(given[0]);
  if (number != PyList_GET_SIZE(given[1])) Py_RETURN_FALSE;
  if (is_watched()) Py_RETURN_NONE;
  for (Py_ssize_t i = 0; i < number; i++) {
    PyObject* pair[] = {PyList_GET_ITEM(given[0], i), PyList_GET_ITEM(given[1], i)};
    for (PyObject* one : pair) {
      if (!THPVariable_CheckExact(one)) Py_RETURN_NONE;
      const Tensor& tensor = THPVariable_Unpack(one);
      if (!is_plain(tensor) || !tensor.is_cpu()) Py_RETURN_NONE;
    }
    const Tensor one = THPVariable_Unpack(pair[0]).contiguous(), other = THPVariable_Unpack(pair[1]).contiguous();
    if (one.scalar_type() != other.scalar_type() || one.sizes() != other.sizes()) Py_RETURN_FALSE;
    if (one.nbytes() && std::memcmp(one.const_data_ptr(), other.const_data_ptr(), one.nbytes()) != 0)
      Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

}  // namespace
