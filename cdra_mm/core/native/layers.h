// The layers of a model whose products go through copies, and what each is multiplied by in a forward.
//
// Two types of Python, so that a forward and a layer's product are one call each. `Layers` stays from
// forward to forward, `Product` is of one.
#pragma once

#include <ATen/autocast_mode.h>

#include "node.h"

namespace {

// Fields of what is told of a layer, a tuple.
enum OfLayer { WEIGHT, BIAS, FACTORS, SOURCES, ENTRIES, OF_LAYER };  // no bias where it is itself computed

// Its tensors are Python's: only so can Python find that a model which they know is held by itself alone.
struct Layers {
  PyObject_HEAD
  PyObject* each;  // a tuple for each layer
  PyObject* what;  // see `layer_copy.arguments_of`: weights, biases, factors, indices, ...
  std::vector<std::shared_ptr<Blocks>>* blocks;
  KeptLaunch* kept;
};

struct Product {
  PyObject_HEAD
  Layers* layers;
  size_t index;
  Copy* copy;
  Numbers* state;  // of the layer's sources, when the copy was made
};

PyTypeObject* product_type = nullptr;

void forget(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

// `compact_linear.autocast_type`
std::optional<at::ScalarType> autocast_type(const Tensor& x) {
  const auto device = x.device().type();
  if (device == at::kMeta || !at::autocast::is_autocast_enabled(device)) return std::nullopt;
  return at::autocast::get_autocast_dtype(device);
}

variable_list unpacked(PyObject* list) {
  variable_list tensors;
  tensors.reserve(PyList_GET_SIZE(list));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) tensors.push_back(THPVariable_Unpack(PyList_GET_ITEM(list, i)));
  return tensors;
}

PyObject* of_layer(PyObject* each, size_t index, OfLayer which) {
  return PyTuple_GET_ITEM(PyList_GET_ITEM(each, static_cast<Py_ssize_t>(index)), which);
}

// multiply(x, weight, bias) -> y, or None where the copy does not serve the layer as it is now
PyObject* product_multiply(PyObject* self, PyObject* const* given, Py_ssize_t number) {
  HANDLE_TH_ERRORS
  const auto* made = reinterpret_cast<Product*>(self);
  if (number != 3) {
    PyErr_SetString(PyExc_TypeError, "multiply(x, weight, bias)");
    return nullptr;
  }
  if (!THPVariable_CheckExact(given[0]) || !THPVariable_CheckExact(given[1]) || !is_exact_or_none(given[2]))
    Py_RETURN_NONE;
  const auto each = pybind11::reinterpret_borrow<pybind11::object>(made->layers->each);
  if (!each || is_watched()) Py_RETURN_NONE;
  auto layer = [&](OfLayer which) { return of_layer(each.ptr(), made->index, which); };
  const Copy& copy = *made->copy;
  Tensor x = THPVariable_Unpack(given[0]);
  const Tensor weight = THPVariable_Unpack(given[1]), bias = tensor_or_none(given[2]);
  if (!is_plain(x) || (bias.defined() && !is_plain(bias))) Py_RETURN_NONE;
  const std::optional<at::ScalarType> under_autocast = autocast_type(x);
  const at::ScalarType type = under_autocast.value_or(x.scalar_type());
  if (type != copy.weight.scalar_type()) Py_RETURN_NONE;
  if (copy.weight.is_inference() && !c10::InferenceMode::is_enabled()) Py_RETURN_NONE;
  const int hold = entries_hold(layer(ENTRIES));
  if (hold < 0) return nullptr;
  if (!hold || state_of(unpacked(layer(SOURCES))) != *made->state) Py_RETURN_NONE;
  if (x.scalar_type() != type) x = x.to(type);
  const variable_list factors = unpacked(layer(FACTORS));
  const auto blocks = are_trained(factors) ? (*made->layers->blocks)[made->index] : nullptr;
  return THPVariable_Wrap(multiply(x, copy, bias, factors, weight.requires_grad(), blocks));
  END_HANDLE_TH_ERRORS
}

PyObject* product_weight(PyObject* self, void*) {
  HANDLE_TH_ERRORS
  return THPVariable_Wrap(reinterpret_cast<Product*>(self)->copy->weight);
  END_HANDLE_TH_ERRORS
}

int product_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<Product*>(self)->layers);
  return 0;
}

void product_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto* made = reinterpret_cast<Product*>(self);
  delete made->copy;
  delete made->state;
  Py_XDECREF(made->layers);
  forget(self);
}

pybind11::object new_product(Layers* layers, size_t index, Copy copy) {
  auto made = owned(product_type->tp_alloc(product_type, 0));
  if (!made) throw python_error();
  auto* product = reinterpret_cast<Product*>(made.ptr());
  product->layers = reinterpret_cast<Layers*>(Py_NewRef(reinterpret_cast<PyObject*>(layers)));
  product->index = index;
  product->copy = new Copy(std::move(copy));
  product->state = new Numbers(state_of(unpacked(of_layer(layers->each, index, SOURCES))));
  return made;
}

// copies(dtype) -> [Product, ...], or None where something looks at operations
PyObject* layers_copies(PyObject* self, PyObject* dtype) {
  HANDLE_TH_ERRORS
  auto* layers = reinterpret_cast<Layers*>(self);
  if (!THPDtype_Check(dtype)) {
    PyErr_SetString(PyExc_TypeError, "copies(dtype)");
    return nullptr;
  }
  if (!layers->each || is_watched()) Py_RETURN_NONE;
  const auto each = pybind11::reinterpret_borrow<pybind11::object>(layers->each);
  const auto what = pybind11::reinterpret_borrow<pybind11::object>(layers->what);
  auto add = [&](variable_list& to, int i) {
    for (Tensor& tensor : unpacked(PyTuple_GET_ITEM(what.ptr(), i))) to.push_back(std::move(tensor));
  };
  variable_list copied = unpacked(PyTuple_GET_ITEM(what.ptr(), 0)), read = copied;
  const size_t number = copied.size();
  add(copied, 1);
  add(read, 2);
  add(read, 3);
  for (const variable_list* list : {&copied, &read})
    for (const Tensor& tensor : *list)
      if (!is_plain(tensor)) Py_RETURN_NONE;
  const at::ScalarType type = reinterpret_cast<THPDtype*>(dtype)->scalar_type;
  std::optional<Flat> made;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard plainly(c10::autocast_dispatch_keyset);
    made.emplace(copied, copied[0].options().dtype(type));
    at::_foreach_copy_(made->parts, copied);
  }
  Numbers look;
  look.reserve(5 * read.size() + 4);
  add_look_apart(look, made->every);
  for (const Tensor& tensor : read) add_look(look, tensor);
  if (!layers->kept->again(look, made->every.device(), {address_of(made->every)})) {
    const auto to = owned(THPVariable_Wrap(made->every)), parts = owned(listed(made->parts));
    const auto launch =
        owned(PyObject_CallFunctionObjArgs(told.write_copies, to.ptr(), parts.ptr(), what.ptr(), nullptr));
    if (!launch) return nullptr;
    layers->kept->keep(std::move(look), launch);
  }
  auto list = owned(PyList_New(static_cast<Py_ssize_t>(number)));
  if (!list) return nullptr;
  size_t next = number;
  for (size_t i = 0; i < number; i++) {
    Copy copy{made->parts[i], of_layer(each.ptr(), i, BIAS) != Py_None ? made->parts[next++] : Tensor()};
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), new_product(layers, i, std::move(copy)).release().ptr());
  }
  return list.release().ptr();
  END_HANDLE_TH_ERRORS
}

// Layers(each, joints, what), each: [(weight, bias, factors, sources, entries), ...]
PyObject* layers_new(PyTypeObject* type, PyObject* args, PyObject*) {
  HANDLE_TH_ERRORS
  PyObject *each, *joints, *what;
  if (!PyArg_ParseTuple(
          args, "O!O!O!", &PyList_Type, &each, &PyList_Type, &joints, &PyTuple_Type, &what))
    return nullptr;
  auto object = owned(type->tp_alloc(type, 0));
  if (!object) return nullptr;
  auto* layers = reinterpret_cast<Layers*>(object.ptr());
  layers->blocks = new std::vector<std::shared_ptr<Blocks>>();
  layers->kept = new KeptLaunch();
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(each); i++) {
    if (PyTuple_GET_SIZE(PyList_GET_ITEM(each, i)) != OF_LAYER) {
      PyErr_SetString(PyExc_TypeError, "Layers(each, joints, what)");
      return nullptr;
    }
    layers->blocks->push_back(std::make_shared<Blocks>(PyList_GET_ITEM(joints, i)));
  }
  layers->each = Py_NewRef(each);
  layers->what = Py_NewRef(what);
  return object.release().ptr();
  END_HANDLE_TH_ERRORS
}

int layers_traverse(PyObject* self, visitproc visit, void* arg) {
  const auto* layers = reinterpret_cast<Layers*>(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(layers->each);
  Py_VISIT(layers->what);
  return 0;
}

int layers_clear(PyObject* self) {
  auto* layers = reinterpret_cast<Layers*>(self);
  Py_CLEAR(layers->each);
  Py_CLEAR(layers->what);
  return 0;
}

void layers_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  layers_clear(self);
  auto* layers = reinterpret_cast<Layers*>(self);
  delete layers->blocks;
  delete layers->kept;
  forget(self);
}

template <class Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Makes both types, and adds them to the module; false on an error.
bool add_types(PyObject* module) {
  static PyMethodDef product_methods[] = {
      {"multiply", as_method(product_multiply), METH_FASTCALL, nullptr}, {nullptr, nullptr, 0, nullptr}};
  static PyGetSetDef product_gets[] = {
      {"weight", product_weight, nullptr, nullptr, nullptr}, {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyType_Slot product_slots[] = {
      {Py_tp_methods, product_methods},
      {Py_tp_getset, product_gets},
      {Py_tp_traverse, reinterpret_cast<void*>(product_traverse)},
      {Py_tp_dealloc, reinterpret_cast<void*>(product_dealloc)},
      {0, nullptr}};
  static PyType_Spec product_spec = {
      "cdra_native.Product", sizeof(Product), 0,
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, product_slots};
  static PyMethodDef layers_methods[] = {
      {"copies", layers_copies, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
  static PyType_Slot layers_slots[] = {
      {Py_tp_methods, layers_methods},
      {Py_tp_new, reinterpret_cast<void*>(layers_new)},
      {Py_tp_traverse, reinterpret_cast<void*>(layers_traverse)},
      {Py_tp_clear, reinterpret_cast<void*>(layers_clear)},
      {Py_tp_dealloc, reinterpret_cast<void*>(layers_dealloc)},
      {0, nullptr}};
  static PyType_Spec layers_spec = {
      "cdra_native.Layers", sizeof(Layers), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, layers_slots};
  PyObject* made = PyType_FromSpec(&product_spec);
  if (!made) return false;
  product_type = reinterpret_cast<PyTypeObject*>(made);
  made = PyType_FromSpec(&layers_spec);
  if (!made) return false;
  return PyModule_AddObject(module, "Layers", made) == 0;  // which takes it
}

}  // namespace
