// Python's objects in C++, and what Python tells the module once.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/SafePyObject.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::variable_list;

// By `set_up`: the bounds that products are computed by, and Python's part of them.
struct Told {
  int64_t largest_block = 0, small_block = 0, alignment = 0;
  PyObject* write_gradients = nullptr;  // (flat, dy, x, gathered, joint, factors) -> launch or None
  PyObject* write_copies = nullptr;     // (flat, copies, what) -> launch or None
  PyObject* gradients = nullptr;        // (dy, x, gathered, joint, factors) -> list
  PyObject* is_capturing = nullptr;     // () -> whether a CUDA graph is being captured
};
Told told;

pybind11::object owned(PyObject* made) { return pybind11::reinterpret_steal<pybind11::object>(made); }

[[noreturn]] void pass_on_error() {
  python_error error;
  error.persist();
  throw std::move(error);
}

PyObject* listed(const variable_list& tensors) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors.size()));
  if (!list) throw python_error();
  for (size_t i = 0; i < tensors.size(); i++) PyList_SET_ITEM(list, i, THPVariable_Wrap(tensors[i]));
  return list;
}

c10::SafePyObject safe(PyObject* given) {
  Py_INCREF(given);
  return c10::SafePyObject(given, getPyInterpreter());
}

Tensor tensor_or_none(PyObject* given) { return given == Py_None ? Tensor() : THPVariable_Unpack(given); }

// A class of its own may have its own operations.
bool is_exact_or_none(PyObject* given) { return given == Py_None || THPVariable_CheckExact(given); }

}  // namespace
