// The blocks of a weight without Python, and the launches of kernels for them.
#pragma once

#include "looks.h"

namespace {

// Fields of `joint_blocks.JointBlocks`, a tuple; `set_up` compares their names.
enum Field { ROWS, COLS, BEGINS, INDICES, HEIGHTS, WIDTHS, SCALES, DISJOINT, SIZE, LARGEST, WIDTH };
const char* const FIELDS[] = {
    "rows", "cols", "begins", "indices", "heights", "widths", "scales", "disjoint", "size", "largest", "width"};

PyObject* field(PyObject* joint, Field which) { return PyTuple_GET_ITEM(joint, which); }

int64_t whole_number(PyObject* value) {
  const long long number = PyLong_AsLongLong(value);
  if (number == -1 && PyErr_Occurred()) throw python_error();
  return number;
}

Numbers whole_numbers(PyObject* values) {
  Numbers found(PyTuple_GET_SIZE(values));
  for (size_t i = 0; i < found.size(); i++) found[i] = whole_number(PyTuple_GET_ITEM(values, i));
  return found;
}

// Rows or columns of a block: a tensor, or a run.
struct Index {
  Tensor tensor;
  int64_t begin = 0, end = 0;

  explicit Index(PyObject* given) {
    if (THPVariable_Check(given)) {
      tensor = THPVariable_Unpack(given);
      return;
    }
    Py_ssize_t first, last, step;
    if (PySlice_Unpack(given, &first, &last, &step) < 0) throw python_error();
    begin = first;
    end = last;
  }

  // `block_index.columns_of`
  Tensor columns_of(const Tensor& x) const {
    if (!tensor.defined()) return x.slice(1, begin, end);
    if (x.element_size() < 4 && x.is_cpu()) return x.t().index_select(0, tensor).t();
    return x.index_select(1, tensor);
  }
};

// Whether a CUDA graph is being captured. Under Python's lock.
bool is_capturing() {
  const auto capturing = owned(PyObject_CallNoArgs(told.is_capturing));
  if (!capturing) pass_on_error();
  return capturing.ptr() != Py_False;
}

// How a kernel was launched last, and for what: Triton's search for it takes longer than the launch.
// All of it under Python's lock.
class KeptLaunch {
 public:
  // Launches it again by addresses; false where it was launched for something else, or while a CUDA
  // graph is being captured, which needs what `kernel_tables` keeps for it.
  bool again(const Numbers& look, const at::Device& device, std::initializer_list<int64_t> addresses) {
    if (!launch_ || look != look_) return false;
    const auto launch = launch_;  // Python is asked below: another thread may replace it meanwhile
    if (is_capturing()) return false;
    const auto given = owned(PyTuple_New(static_cast<Py_ssize_t>(addresses.size())));
    if (!given) pass_on_error();
    Py_ssize_t i = 0;
    for (const int64_t address : addresses) PyTuple_SET_ITEM(given.ptr(), i++, PyLong_FromLongLong(address));
    const c10::DeviceGuard there(device);  // Triton launches on the current device
    if (!owned(PyObject_CallObject(launch->ptr(getPyInterpreter()), given.ptr()))) pass_on_error();
    return true;
  }

  // Keeps what Python has made of it, None for nothing.
  void keep(Numbers look, const pybind11::object& launch) {
    look_ = std::move(look);
    launch_ = launch.is_none() ? nullptr : std::make_shared<c10::SafePyObject>(safe(launch.ptr()));
  }

 private:
  Numbers look_;
  std::shared_ptr<c10::SafePyObject> launch_;
};

// A layer's `JointBlocks`.
struct Blocks {
  Index rows, cols;
  Numbers begins, heights, widths;
  std::vector<double> scales;
  int64_t largest, width;
  c10::SafePyObject joint;
  KeptLaunch launch;  // of the kernels for the factors' gradients

  explicit Blocks(PyObject* given)
      : rows(field(given, ROWS)),
        cols(field(given, COLS)),
        begins(whole_numbers(field(given, BEGINS))),
        heights(whole_numbers(field(given, HEIGHTS))),
        widths(whole_numbers(field(given, WIDTHS))),
        largest(whole_number(field(given, LARGEST))),
        width(whole_number(field(given, WIDTH))),
        joint(safe(given)) {
    PyObject* all = field(given, SCALES);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(all); i++) scales.push_back(PyFloat_AsDouble(PyTuple_GET_ITEM(all, i)));
    if (PyErr_Occurred()) throw python_error();
  }
};

// Tensors of some sizes in a flat one, as `flat_layout` lays them out. A write to one is none to another.
struct Flat {
  Tensor every;
  variable_list parts;

  Flat(const variable_list& like, const at::TensorOptions& options) {
    Numbers begins;
    int64_t length = 0;
    for (const Tensor& one : like) {
      begins.push_back(length);
      length += (one.numel() + told.alignment - 1) / told.alignment * told.alignment;
    }
    every = at::empty({length}, options);
    for (size_t i = 0; i < like.size(); i++) {
      Tensor part = at::detail::make_tensor<at::TensorImpl>(
          c10::TensorImpl::VIEW, c10::Storage(every.storage()), every.key_set(), every.dtype());
      part.unsafeGetTensorImpl()->set_storage_offset(begins[i]);
      part.unsafeGetTensorImpl()->set_sizes_contiguous(like[i].sizes());
      parts.push_back(std::move(part));
    }
  }
};

}  // namespace
