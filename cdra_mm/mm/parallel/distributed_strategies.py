"""Which ways of spreading a model over processes are refused, and why.

Data parallelism (DDP) is supported. What shards a model is not, in this release:

- mmengine's strategies (FSDP, DeepSpeed, ColossalAI) come with FlexibleRunner, which
  wraps the model and loads checkpoints before any hook runs: the adapters of a
  resumed run would be dropped, and those of a new one never reach its optimizer.
- A sharding wrapper cuts the weights up or flattens them, so that neither the
  gradient of a matrix nor its rows and columns are there to score and adapt.

Little is lost: a frozen backbone has no gradients and no optimizer state, which is
what sharding saves (docs/scaling.md has the bytes).
"""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from cdra_mm.core.model.sharded import is_sharded
from cdra_mm.errors import ConfigError

__all__ = ['check_strategy', 'refuse_sharding']

ADVICE = (
    'adapters need every weight whole on every process. A frozen backbone has no gradients and no '
    'optimizer state, so each GPU can hold it (docs/scaling.md): use DDP, which is'
)


def check_strategy(cfg: Config, *, adapts: bool) -> None:
    """Looks at a config before its model is built.

    Raises:
        ConfigError: If it has a strategy that would be ignored, or one that does not go with
            CDRAHook.
    """
    flexible = str(cfg.get('runner_type')).rpartition('.')[2] == 'FlexibleRunner'
    strategy = _name(cfg.get('strategy'))
    if strategy and not flexible:
        raise ConfigError(
            f'strategy={strategy}: without runner_type=FlexibleRunner mmengine ignores it; set '
            'that, or take the strategy out'
        )
    if flexible and adapts:
        raise ConfigError(
            f'CDRAHook does not run under FlexibleRunner (strategy {strategy or "by default"}): '
            f'{ADVICE} what --launcher does without runner_type and strategy'
        )


def refuse_sharding(runner: Any) -> None:
    """Stops a run whose model is not whole on this process.

    Raises:
        ConfigError: If the runner is not mmengine's `Runner`, the model's wrapper not DDP, or a
            weight is a part of one.
    """
    if not isinstance(runner, Runner):
        strategy = type(getattr(runner, 'strategy', None)).__name__
        raise ConfigError(
            f'CDRAHook does not run under {type(runner).__name__} (strategy {strategy}): {ADVICE} '
            'what a Runner does without a strategy'
        )
    if is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDataParallel):
        raise ConfigError(
            f'CDRAHook does not run under the model wrapper {type(runner.model).__name__}: '
            f'{ADVICE} what is used without model_wrapper_cfg'
        )
    for name, parameter in runner.model.named_parameters():
        if is_sharded(parameter):
            raise ConfigError(
                f'CDRAHook does not run on a model that is spread over processes ({name} is a part '
                f'of a weight): {ADVICE} what is used without fully_shard'
            )


def _name(strategy: Any) -> str:
    kind = strategy.get('type') if isinstance(strategy, dict) else strategy
    if kind is None:
        return ''
    return kind if isinstance(kind, str) else getattr(kind, '__name__', type(kind).__name__)
