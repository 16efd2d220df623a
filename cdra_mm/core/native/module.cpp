// What a training step calls many times, without Python between two operations of torch.
//
// An eager step on a GPU takes as long as its host needs to launch it, and most of what an adapter costs
// the host there is Python between two launches. `core/adapters/native_linear.py` says when it is taken.
//
//   glue.h    Python's objects, and what Python tells
//   looks.h   whether something is as it was
//   blocks.h  the blocks of a weight, launches of kernels
//   node.h    the product and its node of the graph
//   layers.h  a model's layers in a forward

#include "layers.h"

namespace {

// copied_linear(x, copy, bias_copy, bias, joint, factors, kept, weight) -> y, or None where it is not for this
PyObject* copied_linear(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  if (!THPVariable_CheckExact(given[0]) || !THPVariable_CheckExact(given[1])) Py_RETURN_NONE;
  if (!is_exact_or_none(given[2]) || !is_exact_or_none(given[3])) Py_RETURN_NONE;
  const Tensor &x = THPVariable_Unpack(given[0]), bias = tensor_or_none(given[3]);
  const Copy copy{THPVariable_Unpack(given[1]), tensor_or_none(given[2]), given[6] == Py_True};
  PyObject *joint = given[4], *list = given[5];
  if (!PyList_CheckExact(list)) Py_RETURN_NONE;
  variable_list factors;
  bool plain = is_plain(x) && is_plain(copy.weight) && (!bias.defined() || is_plain(bias));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
    if (!THPVariable_CheckExact(PyList_GET_ITEM(list, i))) Py_RETURN_NONE;
    factors.push_back(THPVariable_Unpack(PyList_GET_ITEM(list, i)));
    plain = plain && is_plain(factors.back());
  }
  if (!plain || is_watched()) Py_RETURN_NONE;
  const bool asked = THPVariable_Unpack(given[7]).requires_grad();
  const auto blocks = are_trained(factors) ? std::make_shared<Blocks>(joint) : nullptr;
  return THPVariable_Wrap(multiply(x, copy, bias, factors, asked, blocks));
  END_HANDLE_TH_ERRORS
}

// set_up(fields, largest_block, small_block, alignment, write_gradients, write_copies, gradients, is_capturing)
PyObject* set_up(PyObject*, PyObject* args) {
  PyObject* fields;
  long long largest, small, align;
  Told now;
  if (!PyArg_ParseTuple(
          args, "O!LLLOOOO", &PyTuple_Type, &fields, &largest, &small, &align, &now.write_gradients,
          &now.write_copies, &now.gradients, &now.is_capturing))
    return nullptr;
  bool same = PyTuple_GET_SIZE(fields) == static_cast<Py_ssize_t>(std::size(FIELDS));
  for (size_t i = 0; same && i < std::size(FIELDS); i++)
    same = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(fields, i), FIELDS[i]) == 0;
  if (!same) {
    PyErr_SetString(PyExc_RuntimeError, "the C++ knows other fields of JointBlocks");
    return nullptr;
  }
  now.largest_block = largest;
  now.small_block = small;
  now.alignment = align;
  for (PyObject* one : {now.write_gradients, now.write_copies, now.gradients, now.is_capturing}) Py_INCREF(one);
  const Told before = std::exchange(told, now);
  for (PyObject* one : {before.write_gradients, before.write_copies, before.gradients, before.is_capturing})
    Py_XDECREF(one);
  Py_RETURN_NONE;
}

PyMethodDef METHODS[] = {
    {"copied_linear", as_method(copied_linear), METH_FASTCALL, nullptr},
    {"same_values", as_method(same_values), METH_FASTCALL, nullptr},
    {"holds", holds, METH_O, nullptr},
    {"kinds_of", kinds_of, METH_O, nullptr},
    {"set_up", set_up, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "cdra_native", nullptr, -1, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_cdra_native() {
  PyObject* module = PyModule_Create(&MODULE);
  if (module && !add_types(module)) Py_CLEAR(module);
  return module;
}
