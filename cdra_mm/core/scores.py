"""Sensitivity of every competing entry (CDRA-SPT, Eq. 3).

    s_ij = 1/N sum_n ( dL_n / dW_ij )^2

One forward and one backward of a batch give the exact squares of all its
samples. A ``TorchFunctionMode`` watches which function uses a competing
parameter and puts an operation of ``scored_ops`` in its place, so it does not
matter which module holds the weight or whether its ``forward`` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .errors import ScoreError
from .scored_ops import SquareSink, scored_linear, scored_scale_shift
from .targets import Target, find_targets, parameter_of, resolve, view_of

__all__ = ["STATISTICS", "estimate_scores", "evaluation_mode"]

STATISTICS = ('per_sample', 'per_batch')
LossFn = Callable[[nn.Module, Any], 'Tensor | tuple[Tensor, int]']


def estimate_scores(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    targets: Iterable[str] | None = None,
    statistic: str = 'per_sample',
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Mean squared per-sample gradient of every target (CDRA-SPT, Eq. 3).

    The model runs in ``eval()`` mode, so that dropout is off and batch norms do
    not mix samples, and is left exactly as it was found.

    Args:
        model: Any module. Weights may be frozen; no ``.grad`` is touched.
        batches: Batches, each whatever ``loss_fn`` takes.
        loss_fn: Called as ``loss_fn(model, batch)``. Returns the losses of the
            batch's samples ``[B]``, each depending on its own sample only, or
            ``(mean loss of the batch, B)`` where the loss is a plain mean.
            Inputs of scored layers must have the sample as their first
            dimension (``[B, ...]``, or ``[B * windows, ...]``).
        targets: Names to score. Default: `find_targets(model)`.
        statistic: ``'per_sample'`` (Eq. 3), or ``'per_batch'``: the mean over
            batches of the squared gradient of the batch's mean loss (SPT's
            released code).
        progress: Called after each batch with the number of samples so far.

    Returns:
        fp32 scores by target name, in the target's shape. Parts of a fused
        matrix are views of one tensor.

    Raises:
        ScoreError: If there is no batch, a loss or gradient is not finite, all
            gradients are zero, or a weight is used twice or in an unknown way.
        PlanError: If a name does not fit the model.
    """
    if statistic not in STATISTICS:
        raise ScoreError(f'statistic={statistic!r}: expected one of {", ".join(STATISTICS)}')
    if targets is None:
        chosen = find_targets(model)
    else:
        chosen = {name: resolve(model, name) for name in targets}
    sink = SquareSink(statistic == 'per_sample')
    names: dict[int, str] = {}
    for target in chosen.values():
        parameter = parameter_of(model, target)
        names[id(parameter)] = target.path
        if target.path not in sink.sums:
            sink.sums[target.path] = torch.zeros_like(
                parameter, dtype=torch.float32, requires_grad=False
            )

    samples = num_batches = 0
    watch = _ParameterWatch(names, sink)
    with evaluation_mode(model):
        for batch in batches:
            samples += _score_batch(model, batch, loss_fn, watch, samples)
            num_batches += 1
            if progress is not None:
                progress(samples)
    if not samples:
        raise ScoreError('no sample to score: `batches` is empty; give at least one batch')

    for total in sink.sums.values():
        total.div_(samples if sink.per_sample else num_batches)
    if not any(bool(total.any()) for total in sink.sums.values()):
        raise ScoreError(
            f'the gradients of all {len(chosen)} targets are exactly zero over {samples} samples: '
            'the loss does not depend on the backbone. Is the last layer of the head all zeros, '
            'or is the backbone run under no_grad?'
        )
    return {name: _score_of(sink, target) for name, target in chosen.items()}


def _score_of(sink: SquareSink, target: Target) -> Tensor:
    return view_of(target, sink.sums[target.path])


def _score_batch(
    model: nn.Module, batch: Any, loss_fn: LossFn, watch: _ParameterWatch, first: int
) -> int:
    sink = watch.sink
    watch.begin()
    with torch.enable_grad():
        with watch:
            losses = loss_fn(model, batch)
        if isinstance(losses, tuple):
            mean, size = losses
            losses = mean.reshape(1) * size
        else:
            size = losses.numel()
            if losses.dim() != 1:
                raise ScoreError(
                    f'loss_fn returned a tensor of shape {tuple(losses.shape)}: expected the '
                    "samples' losses [B], or (mean loss, B)"
                )
        bad = torch.nonzero(~torch.isfinite(losses.detach())).flatten().tolist()
        if bad:
            index = first + bad[0]
            raise ScoreError(
                f'the loss of sample {index} is {losses[bad[0]].item()}'
                + (f' (batch of {size})' if losses.numel() != size else '')
                + ': expected a finite value; check that image and its labels',
                sample=index,
            )
        sink.batch_size, sink.finite = size, None
        if losses.requires_grad:
            # Only what lies between the loss and the scored layers is computed: no gradient of
            # any other parameter.
            torch.autograd.grad(losses.sum(), [watch.anchor], allow_unused=True)
    if sink.finite is not None and not bool(sink.finite.all()):
        index = first + int(torch.nonzero(~sink.finite)[0])
        raise ScoreError(
            f'the gradient of sample {index} is not finite: expected finite values; score in fp32 '
            'or bf16 and check that sample',
            sample=index,
        )
    return size


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode, and each back into its own mode after."""
    # Flags are set one by one: some backbones override train() and freeze parts in it.
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _ParameterWatch(TorchFunctionMode):
    """Replaces each use of a competing parameter by its scored operation."""

    def __init__(self, names: dict[int, str], sink: SquareSink) -> None:
        super().__init__()
        self.names, self.sink = names, sink
        self.anchor = torch.zeros((), requires_grad=True)
        self.used: set[str] = set()

    def begin(self) -> None:
        """Starts a new batch."""
        self.used.clear()
        device = next(iter(self.sink.sums.values())).device if self.sink.sums else None
        self.anchor = torch.zeros((), requires_grad=True, device=device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            out = handler(self, *args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.requires_grad:
            for value in _flat((*args, *kwargs.values())):
                name = self.name(value)
                if name and not isinstance(out, nn.Parameter):
                    raise ScoreError(
                        f'{name} is used by {getattr(func, "__name__", func)}, which cannot be '
                        'scored exactly: leave it out of `targets`, or add an operation to '
                        'cdra_mm/core/scores.py'
                    )
        return out

    def name(self, value: Any) -> str:
        """The name of a competing parameter, '' for anything else."""
        return self.names.get(id(value), '') if isinstance(value, nn.Parameter) else ''

    def use(self, *values: Any) -> list[str]:
        """The names of the values, each noted as used once in this batch."""
        found = [self.name(value) for value in values]
        for name in filter(None, found):
            if name in self.used:
                raise ScoreError(
                    f'{name} is used twice in one forward: the squares of its uses do not add up '
                    'to the square of its gradient; leave shared weights out of `targets`'
                )
            self.used.add(name)
        return found


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _linear(watch: _ParameterWatch, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    weight_name, bias_name = watch.use(weight, bias)
    if not (weight_name or bias_name):
        return NotImplemented
    return scored_linear(watch.anchor, input, weight, bias, watch.sink, weight_name, bias_name)


def _layer_norm(
    watch: _ParameterWatch,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    scale_name, shift_name = watch.use(weight, bias)
    if not (scale_name or shift_name):
        return NotImplemented
    normal = F.layer_norm(input, normalized_shape, eps=eps)
    return scored_scale_shift(
        watch.anchor, normal, weight, bias, watch.sink, scale_name, shift_name
    )


def _multiply(watch: _ParameterWatch, input: Any, other: Any) -> Any:
    for x, scale in ((input, other), (other, input)):
        if watch.name(scale) and scale.dim() == 1 and isinstance(x, Tensor):
            (name,) = watch.use(scale)
            return scored_scale_shift(watch.anchor, x, scale, None, watch.sink, name, '')
    return NotImplemented


def _attention(
    watch: _ParameterWatch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    **kwargs: Any,
) -> Any:
    """``F.multi_head_attention_forward`` (inputs ``[T, B, E]``) with scored projections."""
    uses = (in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias)
    if not any(watch.name(p) for p in uses):
        return NotImplemented
    odd = {
        'a 2-D query': query.dim() != 3,
        'key and value biases': bias_k is not None or bias_v is not None,
        'add_zero_attn': add_zero_attn,
        'separate projection weights': use_separate_proj_weight,
        'key_padding_mask': key_padding_mask is not None,
        'attn_mask': attn_mask is not None,
        'is_causal': bool(kwargs.get('is_causal')),
    }
    for what, given in odd.items():
        if given:
            raise ScoreError(f'nn.MultiheadAttention with {what} cannot be scored exactly')
    in_w, in_b, out_w, out_b = watch.use(*uses)
    width = embed_dim_to_check
    projected = []
    same = key is query and value is query
    for i, tokens in enumerate((query,) if same else (query, key, value)):
        rows = slice(None) if same else slice(i * width, (i + 1) * width)
        x = tokens.transpose(0, 1)
        bias = None if in_proj_bias is None else in_proj_bias.detach()[rows]
        weight = in_proj_weight.detach()[rows]
        projected.append(
            scored_linear(watch.anchor, x, weight, bias, watch.sink, in_w, in_b, rows)
        )
    q, k, v = projected[0].chunk(3, dim=-1) if same else projected
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = scored_linear(
        watch.anchor, out, out_proj_weight, out_proj_bias, watch.sink, out_w, out_b
    )
    return out.transpose(0, 1), None


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.mul: _multiply,
    Tensor.mul: _multiply,
    Tensor.mul_: _multiply,
    Tensor.__mul__: _multiply,
    Tensor.__rmul__: _multiply,
    F.multi_head_attention_forward: _attention,
}
