// The node of the graph: `core/adapters/copied_linear.py` once more, the same operations of torch in the
// same order, so the same bits. `copied_linear.py` says what they compute, and runs where this does not.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>

#include "blocks.h"

namespace {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;

template <class T, class... Args>
auto make_node(Args&&... args) {
  using Held = decltype(Edge::function);
  if constexpr (std::is_same_v<Held, std::shared_ptr<Node>>) {  // before torch 2.12
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

Tensor flat(const Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

Tensor scaled(const Tensor& factor, double scale) { return scale == 1 ? factor : factor * scale; }

// `compact_linear.through_block`
bool through_block(int64_t height, int64_t width, int64_t rank) {
  return height * width <= std::max(told.small_block, rank) * (height + width);
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
  if (blocks.scales.size() == 1 && blocks.width == blocks.widths[0]) return take(0, dy_r, x_c);
  int64_t row = 0;
  for (size_t i = 0; i < blocks.scales.size(); i++) {
    take(i, dy_r.narrow(1, row, blocks.heights[i]), x_c.narrow(1, blocks.begins[i], blocks.widths[i]));
    row += blocks.heights[i];
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

variable_list gradients_in_python(
    const Tensor& dy, const Tensor& x, bool gathered, const Blocks& blocks, const variable_list& factors) {
  pybind11::gil_scoped_acquire gil;
  const auto d = owned(THPVariable_Wrap(dy)), in = owned(THPVariable_Wrap(x)), all = owned(listed(factors));
  PyObject* joint = blocks.joint.ptr(getPyInterpreter());
  const auto found = owned(PyObject_CallFunctionObjArgs(
      told.gradients, d.ptr(), in.ptr(), gathered ? Py_True : Py_False, joint, all.ptr(), nullptr));
  if (!found) pass_on_error();
  variable_list out;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(found.ptr()); i++)
    out.push_back(THPVariable_Unpack(PyList_GET_ITEM(found.ptr(), i)));
  return out;
}

// `block_ops.write_factor_gradients`
void write_gradients(
    const Tensor& every, const Tensor& dy, const Tensor& x, bool gathered, Blocks& blocks,
    const variable_list& factors) {
  pybind11::gil_scoped_acquire gil;
  Numbers look;
  add_look_apart(look, every);
  add_look_apart(look, dy);
  add_look_apart(look, x);
  look.push_back(gathered);
  for (const Tensor& factor : factors) add_look(look, factor);
  if (blocks.launch.again(look, every.device(), {address_of(every), address_of(dy), address_of(x)})) return;
  const auto to = owned(THPVariable_Wrap(every)), d = owned(THPVariable_Wrap(dy)), in = owned(THPVariable_Wrap(x));
  const auto all = owned(listed(factors));
  PyObject* joint = blocks.joint.ptr(getPyInterpreter());
  const auto launch = owned(PyObject_CallFunctionObjArgs(
      told.write_gradients, to.ptr(), d.ptr(), in.ptr(), gathered ? Py_True : Py_False, joint, all.ptr(), nullptr));
  if (!launch) pass_on_error();
  blocks.launch.keep(std::move(look), launch);
}

// `copied_linear._gradients`
variable_list gradients(
    const Tensor& dy, const Tensor& x, bool gathered, Blocks& blocks, const variable_list& factors) {
  bool plain = blocks.largest <= told.largest_block;
  for (const Tensor& factor : factors) plain = plain && factor.scalar_type() == at::kFloat;
  if (!plain || dy.is_neg()) return gradients_in_python(dy, x, gathered, blocks, factors);
  Flat found(factors, factors[0].options());
  write_gradients(found.every, dy, x, gathered, blocks, factors);
  return std::move(found.parts);
}

struct CopiedLinearBackward : Node {
  SavedVariable copy, x_c;
  std::vector<SavedVariable> factors;
  std::shared_ptr<Blocks> blocks;  // where factors are trained
  std::optional<at::ScalarType> bias_type;
  bool kept = false, gathered = false;  // whether x_c holds the columns of the blocks alone

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
      if (blocks) x = x_c.unpack();
      for (SavedVariable& factor : factors) now.push_back(factor.unpack());
    }
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list out(2);
    const Tensor dy = flat(given);
    if (task_should_compute_output(0)) out[0] = given.matmul(weight);
    if (bias_type && task_should_compute_output(1)) out[1] = dy.sum(at::IntArrayRef({0}), false, *bias_type);
    if (!blocks) {
      out.resize(num_outputs());
      return out;
    }
    x = flat(x);
    variable_list found;
    if (kept) {
      if (!gathered) x = blocks->cols.columns_of(x);
      found = gradients_apart(blocks->rows.columns_of(dy), x, *blocks, now);
    } else {
      found = gradients(dy, x, gathered, *blocks, now);
    }
    out.insert(out.end(), found.begin(), found.end());
    return out;
  }
};

// What a layer is multiplied by.
struct Copy {
  Tensor weight, bias;
  bool kept = false;  // whether it stays between forwards
};

bool are_trained(const variable_list& factors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& factor : factors)
    if (factor.requires_grad()) return true;
  return false;
}

// `copied_linear.multiply_by_copy`
//
// bias: the layer's, undefined for none. asked: whether its weight asks for a gradient; it gets none, as
// from Python. blocks: where factors are trained, see `are_trained`.
Tensor multiply(
    const Tensor& x, const Copy& copy, const Tensor& bias, const variable_list& factors, bool asked,
    std::shared_ptr<Blocks> blocks) {
  const bool graph = at::GradMode::is_enabled();
  const bool needed =
      graph && (blocks || asked || x.requires_grad() || (bias.defined() && bias.requires_grad()));
  Tensor y, x_c;
  bool gathered = false;
  {
    pybind11::gil_scoped_release free;
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard plainly(c10::autocast_dispatch_keyset);
    std::optional<Tensor> bias_copy;
    if (bias.defined()) bias_copy = copy.bias.defined() ? copy.bias : bias.to(x.scalar_type());
    if (blocks) {
      gathered = blocks->width < x.size(-1);
      x_c = gathered ? blocks->cols.columns_of(flat(x)) : x;
      // No view: it would keep all of x, and see what is written to it later.
      if (gathered && !blocks->cols.tensor.defined()) x_c = x_c.clone(at::MemoryFormat::Contiguous);
    }
    y = at::linear(x, copy.weight, bias_copy);
  }
  if (!needed) return y;
  auto node = make_node<CopiedLinearBackward>();
  edge_list edges;
  edges.reserve(2 + factors.size());
  auto edge = [](const Tensor& t) {
    return t.defined() && t.requires_grad() ? torch::autograd::impl::gradient_edge(t) : Edge();
  };
  edges.push_back(edge(x));
  edges.push_back(edge(bias));
  for (const Tensor& factor : factors) edges.push_back(edge(factor));
  node->set_next_edges(std::move(edges));
  node->copy = SavedVariable(copy.weight, false);
  if (bias.defined()) node->bias_type = bias.scalar_type();
  if (blocks) {
    node->x_c = SavedVariable(x_c, false);
    for (const Tensor& factor : factors) node->factors.emplace_back(factor, false);
    node->blocks = std::move(blocks);
    node->kept = copy.kept;
    node->gathered = gathered;
  }
  torch::autograd::set_history(y, node);
  return y;
}

}  // namespace
