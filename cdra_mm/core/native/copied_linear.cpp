// The adapted product through a copy of the weight: `core/adapters/copied_linear.py` once more.
//
// An eager step on a GPU takes as long as its host needs to launch it, and most of what an adapter
// costs the host there is Python between two launches. The same operations of torch in the same
// order, so the same bits; `copied_linear.py` says what they compute, and runs where this does not.
//
// Versions of torch differ in what holds a node of the graph: see `make_node`.

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <c10/core/SafePyObject.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

template <class T, class... Args>
auto make_node(Args&&... args) {
  using Held = decltype(Edge::function);
  if constexpr (std::is_same_v<Held, std::shared_ptr<Node>>) {  // before torch 2.12
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

// What is set once, by `set_up`: Python's part, and the bounds that it decides by.
PyObject* gradients_of_product = nullptr;  // (flat, gradient, joint, apart, factors)
PyObject* gradients_in_python = nullptr;   // (dy_r, x_c, joint, factors)
int64_t largest_block = 0;
double wasted_products = 0;
int64_t small_block = 0;
int64_t alignment = 0;

// Fields of `joint_blocks.JointBlocks`, a tuple; `set_up` compares their names.
enum Field { ROWS, COLS, INDICES, HEIGHTS, WIDTHS, SCALES, DISJOINT, PLACES, PLACES_APART, SIZE, LARGEST, WIDTH };
const char* const FIELDS[] = {
    "rows", "cols", "indices", "heights", "widths", "scales",
    "disjoint", "places", "places_apart", "size", "largest", "width"};

PyObject* field(PyObject* joint, Field which) { return PyTuple_GET_ITEM(joint, which); }

int64_t whole_number(PyObject* value) {
  const long long number = PyLong_AsLongLong(value);
  if (number == -1 && PyErr_Occurred()) throw python_error();
  return number;
}

std::vector<int64_t> whole_numbers(PyObject* values) {
  std::vector<int64_t> found(PyTuple_GET_SIZE(values));
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

// What the backward wants of a layer's `JointBlocks`, without Python.
struct Blocks {
  Index rows, cols;
  std::vector<int64_t> heights, widths, begins_apart;
  std::vector<double> scales;
  int64_t size, largest, width;

  explicit Blocks(PyObject* joint)
      : rows(field(joint, ROWS)),
        cols(field(joint, COLS)),
        heights(whole_numbers(field(joint, HEIGHTS))),
        widths(whole_numbers(field(joint, WIDTHS))),
        begins_apart(whole_numbers(field(joint, PLACES_APART))),
        size(whole_number(field(joint, SIZE))),
        largest(whole_number(field(joint, LARGEST))),
        width(whole_number(field(joint, WIDTH))) {
    PyObject* given = field(joint, SCALES);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++)
      scales.push_back(PyFloat_AsDouble(PyTuple_GET_ITEM(given, i)));
    if (PyErr_Occurred()) throw python_error();
  }
};

Tensor flat(const Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

Tensor scaled(const Tensor& factor, double scale) { return scale == 1 ? factor : factor * scale; }

// `compact_linear.through_block`
bool through_block(int64_t height, int64_t width, int64_t rank) {
  return height * width <= std::max(small_block, rank) * (height + width);
}

// `copied_linear._through`
void through_factors(
    const Tensor& d, const Tensor& x, const Tensor& down, const Tensor& up, double scale, variable_list& out) {
  const Tensor d_hidden = d.matmul(scaled(up, scale).to(d.scalar_type()));
  const Tensor hidden = scaled(at::linear(x, down.to(d.scalar_type())), scale);
  out.push_back(d_hidden.t().matmul(x).to(down.scalar_type()));
  out.push_back(d.t().matmul(hidden).to(up.scalar_type()));
}

// Rows of dy and columns of x of each block in turn.
template <class Take>
void each_part(const Tensor& dy_r, const Tensor& x_c, const Blocks& blocks, Take take) {
  if (blocks.scales.size() == 1) return take(0, dy_r, x_c);
  int64_t row = 0, col = 0;
  for (size_t i = 0; i < blocks.scales.size(); i++) {
    take(i, dy_r.narrow(1, row, blocks.heights[i]), x_c.narrow(1, col, blocks.widths[i]));
    row += blocks.heights[i];
    col += blocks.widths[i];
  }
}

// `copied_linear._gradients_apart`
variable_list gradients_apart(
    const Tensor& dy_r, const Tensor& x_c, const Blocks& blocks, const variable_list& factors) {
  const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
  variable_list out;
  each_part(dy_r, x_c, blocks, [&](size_t i, const Tensor& d, const Tensor& x) {
    const Tensor &down = factors[2 * i], &up = factors[2 * i + 1];
    if (through_block(blocks.heights[i], blocks.widths[i], down.size(0))) {
      const Tensor block = scaled(at::mm(d.t(), x), blocks.scales[i]).to(up.scalar_type());
      out.push_back(at::mm(up.t(), block));
      out.push_back(at::mm(block, down.to(up.scalar_type()).t()));
    } else {
      through_factors(d, x, down, up, blocks.scales[i], out);
    }
  });
  return out;
}

// `copied_linear._products_apart`
Tensor products_apart(const Tensor& dy_r, const Tensor& x_c, const Blocks& blocks) {
  Tensor every = at::empty({blocks.size}, dy_r.options());
  each_part(dy_r, x_c, blocks, [&](size_t i, const Tensor& d, const Tensor& x) {
    const int64_t height = d.size(1), width = x.size(1);
    Tensor part = every.narrow(0, blocks.begins_apart[2 * i], height * width).view({height, width});
    at::mm_out(part, d.t(), x);
  });
  return every;
}

PyObject* listed(const variable_list& tensors) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors.size()));
  if (!list) throw python_error();
  for (size_t i = 0; i < tensors.size(); i++) PyList_SET_ITEM(list, i, THPVariable_Wrap(tensors[i]));
  return list;
}

pybind11::object owned(PyObject* made) { return pybind11::reinterpret_steal<pybind11::object>(made); }

[[noreturn]] void pass_on_error() {
  python_error error;
  error.persist();
  throw std::move(error);
}

// `copied_linear._gradients`; the parts of `block_ops.factor_gradients` are taken here.
variable_list gradients(
    const Tensor& dy_r, const Tensor& x_c, const Blocks& blocks, PyObject* joint, const variable_list& factors) {
  bool plain = blocks.largest <= largest_block;
  for (const Tensor& factor : factors) plain = plain && factor.scalar_type() == at::kFloat;
  if (!plain) {
    pybind11::gil_scoped_acquire gil;
    const auto d = owned(THPVariable_Wrap(dy_r)), x = owned(THPVariable_Wrap(x_c)), all = owned(listed(factors));
    const auto found = owned(PyObject_CallFunctionObjArgs(
        gradients_in_python, d.ptr(), x.ptr(), joint, all.ptr(), nullptr));
    if (!found) pass_on_error();
    variable_list out;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(found.ptr()); i++)
      out.push_back(THPVariable_Unpack(PyList_GET_ITEM(found.ptr(), i)));
    return out;
  }
  bool apart = false;
  if (blocks.scales.size() > 1) {
    const int64_t in_vain = dy_r.size(1) * x_c.size(1) - blocks.size;
    apart = static_cast<double>(dy_r.size(0)) * static_cast<double>(in_vain) > wasted_products;
  }
  const Tensor product = apart ? products_apart(dy_r, x_c, blocks) : at::mm(dy_r.t(), x_c);
  variable_list out;
  std::vector<int64_t> begins;
  int64_t length = 0;
  for (const Tensor& factor : factors) {
    begins.push_back(length);
    length += (factor.numel() + alignment - 1) / alignment * alignment;
  }
  const Tensor every = at::empty({length}, factors[0].options());
  for (size_t i = 0; i < factors.size(); i++)
    out.push_back(every.as_strided(factors[i].sizes(), {factors[i].size(1), 1}, begins[i]));
  pybind11::gil_scoped_acquire gil;
  const auto to = owned(THPVariable_Wrap(every)), from = owned(THPVariable_Wrap(product)), all = owned(listed(factors));
  const auto done = owned(PyObject_CallFunctionObjArgs(
      gradients_of_product, to.ptr(), from.ptr(), joint, apart ? Py_True : Py_False, all.ptr(), nullptr));
  if (!done) pass_on_error();
  return out;
}

struct CopiedLinearBackward : Node {
  SavedVariable copy, x_c;
  std::vector<SavedVariable> factors;
  std::optional<c10::SafePyObject> joint;
  std::optional<Blocks> blocks;
  std::optional<at::ScalarType> bias_type;
  bool trained = false, kept = false;

  std::string name() const override { return "CopiedLinearBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> alone(mutex_);  // of several backward passes through one graph
    copy.reset_data();
    x_c.reset_data();
    for (SavedVariable& factor : factors) factor.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    Tensor dy = std::move(grads[0]);
    if (!dy.defined()) dy = input_metadata(0).zeros_like();
    if (!at::GradMode::is_enabled()) return gradients_for(dy);
    variable_list out;
    {
      at::AutoGradMode off(false);
      out = gradients_for(dy);
    }
    if (!dy.requires_grad()) return out;
    // What `once_differentiable` does.
    auto refusing = make_node<torch::autograd::DelayedError>(
        "trying to differentiate twice a function that was marked with @once_differentiable",
        static_cast<int64_t>(out.size()));
    for (Tensor& grad : out) {
      if (!grad.defined()) continue;
      grad = grad.detach();
      grad.requires_grad_(true);
    }
    return refusing->apply(std::move(out));
  }

  variable_list gradients_for(const Tensor& given) {
    Tensor weight, x;
    variable_list now;
    {
      const std::lock_guard<std::mutex> alone(mutex_);
      weight = copy.unpack();
      if (trained) x = x_c.unpack();
      for (SavedVariable& factor : factors) now.push_back(factor.unpack());
    }
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list out(2);
    const Tensor dy = flat(given);
    if (task_should_compute_output(0)) out[0] = given.matmul(weight);
    if (bias_type && task_should_compute_output(1)) out[1] = dy.sum(at::IntArrayRef({0}), false, *bias_type);
    if (!trained) {
      out.resize(num_outputs());
      return out;
    }
    if (blocks->width >= weight.size(1)) x = blocks->cols.columns_of(flat(x));
    const Tensor dy_r = blocks->rows.columns_of(dy);
    const variable_list found = kept ? gradients_apart(dy_r, x, *blocks, now)
                                     : gradients(dy_r, x, *blocks, joint->ptr(getPyInterpreter()), now);
    out.insert(out.end(), found.begin(), found.end());
    return out;
  }
};

// Whether nothing looks at operations as such, and all is a plain tensor of torch.
bool is_plain(const Tensor& tensor) {
  const c10::DispatchKeySet keys = tensor.key_set();
  const bool other = keys.has_any(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::Functionalize, c10::DispatchKey::Conjugate, c10::DispatchKey::Negative}));
  return !other && tensor.layout() == at::kStrided && !tensor._fw_grad(0).defined();
}

bool is_watched() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  const bool mode = included.has_any(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
       c10::DispatchKey::Functionalize}));
  return mode || at::impl::torch_function_mode_enabled() || at::tracer::impl::is_dispatch_enabled();
}

// copied_linear(x, copy, bias_copy, bias, joint, factors, kept, weight) -> y, or None where it is not for this
PyObject* copied_linear(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  auto tensor = [](PyObject* one) { return one == Py_None ? Tensor() : THPVariable_Unpack(one); };
  for (int i = 0; i < 4; i++)  // a class of its own may have its own operations
    if (given[i] != Py_None && !THPVariable_CheckExact(given[i])) Py_RETURN_NONE;
  const Tensor &x = THPVariable_Unpack(given[0]), &copy = THPVariable_Unpack(given[1]);
  Tensor bias_copy = tensor(given[2]);
  const Tensor bias = tensor(given[3]);
  PyObject *joint = given[4], *list = given[5];
  if (!PyList_CheckExact(list)) Py_RETURN_NONE;
  variable_list factors;
  bool learns = false;
  bool plain = is_plain(x) && is_plain(copy) && (!bias.defined() || is_plain(bias));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
    PyObject* factor = PyList_GET_ITEM(list, i);
    if (!THPVariable_CheckExact(factor)) Py_RETURN_NONE;
    factors.push_back(THPVariable_Unpack(factor));
    learns = learns || factors.back().requires_grad();
    plain = plain && is_plain(factors.back());
  }
  if (!plain || is_watched()) Py_RETURN_NONE;
  const bool graph = at::GradMode::is_enabled();
  const bool trained = graph && learns;
  // A weight that asks for a gradient gets none, as from Python.
  const bool asked = THPVariable_Unpack(given[7]).requires_grad();
  const bool needed = graph && (learns || asked || x.requires_grad() || (bias.defined() && bias.requires_grad()));
  std::optional<Blocks> blocks;
  if (trained) blocks.emplace(joint);
  Tensor y, x_c;
  {
    pybind11::gil_scoped_release free;
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard plainly(c10::autocast_dispatch_keyset);
    if (bias.defined() && !bias_copy.defined()) bias_copy = bias.to(x.scalar_type());
    if (trained) {
      const bool whole = blocks->width >= x.size(-1);
      x_c = whole ? x : blocks->cols.columns_of(flat(x));
      // No view: it would keep all of x, and see what is written to it later.
      if (!whole && !blocks->cols.tensor.defined()) x_c = x_c.clone(at::MemoryFormat::Contiguous);
    }
    y = at::linear(x, copy, bias_copy.defined() ? std::optional<Tensor>(bias_copy) : std::nullopt);
  }
  if (needed) {
    auto node = make_node<CopiedLinearBackward>();
    edge_list edges;
    auto edge = [](const Tensor& t) {
      return t.defined() && t.requires_grad() ? torch::autograd::impl::gradient_edge(t) : Edge();
    };
    edges.push_back(edge(x));
    edges.push_back(edge(bias));
    for (const Tensor& factor : factors) edges.push_back(edge(factor));
    node->set_next_edges(std::move(edges));
    node->copy = SavedVariable(copy, false);
    if (bias.defined()) node->bias_type = bias.scalar_type();
    if (trained) {
      node->x_c = SavedVariable(x_c, false);
      for (const Tensor& factor : factors) node->factors.emplace_back(factor, false);
      Py_INCREF(joint);
      node->joint.emplace(joint, getPyInterpreter());
      node->blocks = std::move(blocks);
      node->trained = true;
      node->kept = given[6] == Py_True;
    }
    torch::autograd::set_history(y, node);
  }
  return THPVariable_Wrap(y);
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

// holds(entries): whether each of some dictionaries has a value; dictionary, key, value, ...
PyObject* holds(PyObject*, PyObject* entries) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries); i += 3) {
    PyObject* found = PyDict_GetItemWithError(PyList_GET_ITEM(entries, i), PyList_GET_ITEM(entries, i + 1));
    if (found != PyList_GET_ITEM(entries, i + 2)) {
      if (PyErr_Occurred()) return nullptr;
      Py_RETURN_FALSE;
    }
  }
  Py_RETURN_TRUE;
}

PyObject* as_bytes(const std::vector<int64_t>& numbers) {
  return PyBytes_FromStringAndSize(
      reinterpret_cast<const char*>(numbers.data()), static_cast<Py_ssize_t>(numbers.size() * sizeof(int64_t)));
}

// state_of(tensors, versions): type and device of each, and how often it was written to in place
PyObject* state_of(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const bool versions = given[1] == Py_True;
  std::vector<int64_t> found;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(given[0]); i++) {
    const Tensor& tensor = THPVariable_Unpack(PyList_GET_ITEM(given[0], i));
    const auto device = tensor.device();
    found.push_back(
        static_cast<int64_t>(tensor.scalar_type()) | static_cast<int64_t>(device.type()) << 16 |
        static_cast<int64_t>(device.has_index() ? device.index() + 1 : 0) << 32);
    if (versions) found.push_back(tensor.is_inference() ? 0 : tensor._version());
  }
  return as_bytes(found);
  END_HANDLE_TH_ERRORS
}

// look_of(tensors): where the memory of each begins, and its sizes
PyObject* look_of(PyObject*, PyObject* tensors) {
  HANDLE_TH_ERRORS
  std::vector<int64_t> found;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++) {
    const Tensor& tensor = THPVariable_Unpack(PyList_GET_ITEM(tensors, i));
    found.push_back(reinterpret_cast<int64_t>(tensor.const_data_ptr()));
    found.push_back(tensor.dim());
    for (const int64_t size : tensor.sizes()) found.push_back(size);
  }
  return as_bytes(found);
  END_HANDLE_TH_ERRORS
}

// set_up(fields, largest_block, wasted_products, small_block, alignment, of_product, in_python)
PyObject* set_up(PyObject*, PyObject* args) {
  PyObject *fields, *of_product, *in_python;
  long long largest, small, align;
  double wasted;
  if (!PyArg_ParseTuple(
          args, "O!LdLLOO", &PyTuple_Type, &fields, &largest, &wasted, &small, &align, &of_product, &in_python))
    return nullptr;
  bool same = PyTuple_GET_SIZE(fields) == static_cast<Py_ssize_t>(std::size(FIELDS));
  for (size_t i = 0; same && i < std::size(FIELDS); i++)
    same = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(fields, i), FIELDS[i]) == 0;
  if (!same) {
    PyErr_SetString(PyExc_RuntimeError, "copied_linear.cpp knows other fields of JointBlocks");
    return nullptr;
  }
  largest_block = largest;
  wasted_products = wasted;
  small_block = small;
  alignment = align;
  Py_INCREF(of_product);
  Py_INCREF(in_python);
  Py_XDECREF(std::exchange(gradients_of_product, of_product));
  Py_XDECREF(std::exchange(gradients_in_python, in_python));
  Py_RETURN_NONE;
}

PyMethodDef METHODS[] = {
    {"copied_linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(copied_linear)), METH_FASTCALL, nullptr},
    {"same_values", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(same_values)), METH_FASTCALL, nullptr},
    {"holds", holds, METH_O, nullptr},
    {"state_of", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(state_of)), METH_FASTCALL, nullptr},
    {"look_of", look_of, METH_O, nullptr},
    {"set_up", set_up, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "cdra_native", nullptr, -1, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_cdra_native() { return PyModule_Create(&MODULE); }
