"""Several adapters on one base: named, and switched in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cdra_mm.errors import PlanError
from cdra_mm.spelling import did_you_mean

from ..adapters.adapted import adapters, trained_whole
from ..adapters.adapter import Adapter
from ..adapters.apply import AdapterSlot, check_fits, planned_adapters
from ..adapters.fitting import Fitting, record_fitting
from ..model.own_state import base_buffers, base_state
from ..model.row_int8 import is_int8
from ..planning.plan import Plan
from .files import AdapterFile, read_adapter
from .loading import build_from_file, put_on, replaced_values

__all__ = ['NamedAdapters']


@dataclass
class _Entry:
    """What one name stands for.

    Attributes:
        plan: Its plan.
        slots: Its adapters; they live here while others are on the model.
        whole: Values of the model's own tensors that it replaces, while it is not in use: what it
            trains whole or brings along, and buffers that have changed while it was in use.
        beside: Names of what was trained beside its plan.
        grads: Gradients of what it trains whole, while it is not in use.
        fitting: What it changes of the model, once it has been put on.
    """

    plan: Plan
    slots: list[AdapterSlot]
    whole: dict[str, Tensor]
    beside: tuple[str, ...] = ()
    grads: dict[str, Tensor] = field(default_factory=dict)
    fitting: Fitting | None = None


class NamedAdapters:
    """Adapters of one base model by name, of which one at a time is on the model.

    The first use of a name fits its adapters to the model; from then on a switch exchanges
    objects, whatever the adapters weigh. The base weights are never copied, but for buffers and the
    parameters that an adapter trains whole (vectors, tokens): their base values come back when it
    is taken off.
    The model computes, bit for bit, what it computes after `load_adapter` of the
    same file on a fresh base.

    Raises:
        PlanError: If it is adapted already.

    Example:
        >>> from cdra_mm.core import NamedAdapters, plan_from_masks
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.Sequential(layer)
        >>> plan = plan_from_masks({'0.linear1.weight': torch.ones(16, 8).bool()}, rank_rule=1)
        >>> named = NamedAdapters(model)
        >>> named.add('city', plan)
        >>> named.use('city')
        >>> named.current, named.names
        ('city', ('city',))
    """

    def __init__(self, model: nn.Module) -> None:
        if adapters(model):
            raise PlanError(
                f'{type(model).__name__} is adapted already: expected a plain model with its base '
                'weights; remove its adapters first, and add them by their file'
            )
        self.model = model
        self._entries: dict[str, _Entry] = {}
        self._current: str | None = None
        self._base: dict[str, Tensor] = {}  # of what the current one replaces, and of all buffers
        self._trainable = [(p, p.requires_grad) for p in model.parameters()]
        self._modules = list(model.modules())

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which they were added."""
        return tuple(self._entries)

    @property
    def current(self) -> str | None:
        """The name of the adapter on the model; None where it is the plain base."""
        return self._current

    def add(
        self,
        name: str,
        source: str | Path | AdapterFile | Plan,
        *,
        check_base: bool = True,
        may_differ: str | Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        """Adds an adapter; the one in use stays in use.

        Args:
            name: Its name.
            source: A file of `save_adapter`, also one that was read already, or a plan for one to
                be trained.
            check_base: Refuse other base weights than those it was made for.
            may_differ: Names of those that may be others; see `load_adapter`.
            seed: Seed of the initial values of a plan's adapters.

        Raises:
            PlanError: If there is one of that name, or it does not fit the model.
            CheckpointError: If the file is missing, damaged or of other base weights.
        """
        if not name or name in self._entries:
            raise PlanError(
                f'there is an adapter {name!r} already: remove it first, or use another name'
                if name
                else 'the name of an adapter is empty'
            )
        if not isinstance(name, str) or not isinstance(source, str | Path | AdapterFile | Plan):
            raise PlanError(
                f'{name!r} from a {type(source).__name__}: expected a name, and the path of an '
                'adapter file or a plan'
            )
        file = source if isinstance(source, AdapterFile) else None
        if isinstance(source, str | Path):
            file = read_adapter(source)
        with self._plain(), torch.inference_mode(False):  # what is trained cannot be made in it
            if file is not None:
                slots = build_from_file(
                    self.model, file, check_base=check_base, may_differ=may_differ
                )
                # A copy: what is read is mapped, and the file may be written over meanwhile.
                whole = {k: value.clone() for k, value in replaced_values(file, may_differ).items()}
                self._entries[name] = _Entry(file.plan, slots, whole, file.beside)
            elif isinstance(source, Plan):
                self._entries[name] = self._planned(source, seed)

    def use(self, name: str | None) -> None:
        """Puts an adapter on the model in the place of the one that is there.

        What the plan of the adapter trains is trainable then, everything else frozen.

        Args:
            name: Its name; None gives the plain base, trainable as it was at first.

        Raises:
            PlanError: If there is none of that name, or the one in use is merged, or the
                adapters of the model were changed by other means. Nothing is changed then.
        """
        entry = None if name is None else self._find(name)
        self._check_present()
        if name == self._current:
            return
        if entry is not None:
            self._check_trainable(name, entry)
        self._take_off()
        if name is None or entry is None:
            return
        fitting = entry.fitting
        if fitting is None or fitting.model is not self.model:
            self._put_on_first(entry)
        else:
            self._base = {key: fitting.tensor(key).detach().clone() for key in fitting.places}
            fitting.put_on()
            with torch.no_grad():
                for key, value in entry.whole.items():
                    fitting.tensor(key).copy_(value)
            for key, grad in entry.grads.items():
                fitting.tensor(key).grad = grad.to(fitting.tensor(key))
            entry.grads = {}
        nothing = torch.empty(0, device='cpu')  # the model holds them now
        entry.whole = dict.fromkeys(entry.whole, nothing)
        self._current = name

    def remove(self, name: str) -> None:
        """Drops an adapter; the model is plain afterwards where it was the one in use.

        Raises:
            PlanError: As `use` does.
        """
        self._find(name)
        if name == self._current:
            self.use(None)
        del self._entries[name]

    def plan_of(self, name: str) -> Plan:
        """The plan of an adapter.

        Raises:
            PlanError: If there is none of that name.
        """
        return self._find(name).plan

    def values_of(self, name: str) -> tuple[dict[str, Adapter], dict[str, Tensor]]:
        """The adapters of a name, and the values of the base's own tensors that it replaces.

        Raises:
            PlanError: If there is none of that name, or it is in use: the model has the values.
        """
        entry = self._find(name)
        if name == self._current:
            raise PlanError(f"{name!r} is in use: its values are the model's")
        built = {f'{path}.{key}'.removeprefix('.'): adapter for path, key, adapter in entry.slots}
        return built, dict(entry.whole)

    def _find(self, name: str) -> _Entry:
        if name not in self._entries:
            known = ', '.join(map(repr, self._entries)) or 'none'
            raise PlanError(
                f'there is no adapter {name!r}{did_you_mean(name, self._entries)}: those added are '
                f'{known}'
            )
        return self._entries[name]

    def _planned(self, plan: Plan, seed: int) -> _Entry:
        check_fits(self.model, plan)
        slots = planned_adapters(self.model, plan)
        generator = torch.Generator().manual_seed(seed)
        for _, _, adapter in slots:
            adapter.reset(generator)
        state = base_state(self.model)
        return _Entry(plan, slots, {key: state[key].clone() for key in trained_whole(plan)})

    def _put_on_first(self, entry: _Entry) -> None:
        state = base_state(self.model)
        self._base = {k: state[k].clone() for k in {*entry.whole, *base_buffers(self.model)}}
        for path, _, adapter in entry.slots:
            # The model may have been moved while this one was not on it.
            like = next(self.model.get_submodule(path).parameters(), None)
            if like is not None:
                adapter.to(like.device)
        put_on(self.model, entry.plan, entry.slots, entry.whole, entry.beside)
        entry.fitting = record_fitting(self.model, self._base)

    def _check_trainable(self, name: str | None, entry: _Entry) -> None:
        """Refuses to replace what was quantised since the adapter was added."""
        if not entry.whole:
            return
        if entry.fitting is not None and entry.fitting.model is self.model:
            own = {key: entry.fitting.tensor(key) for key in entry.whole}
        else:
            own = dict(base_state(self.model))
        small = [key for key in entry.whole if is_int8(own[key])]
        if small:
            raise PlanError(
                f'{name!r} trains {small[0]} whole, which is kept in int8 and cannot be trained: '
                'call restore_base first'
            )

    def _check_present(self) -> None:
        fitting = self._entries[self._current].fitting if self._current is not None else None
        merged = [adapter for adapter in fitting.adapters if adapter.merged] if fitting else []
        if merged:
            raise PlanError(
                f'{len(merged)} adapters of {self._current!r} are merged into the base weights: '
                'call unmerge_adapters first'
            )
        own = {id(module) for module, _, _ in fitting.carried} if fitting else set()
        if self._modules[0] is not self.model:
            self._modules = list(self.model.modules())
        adapted = {id(m) for m in self._modules if hasattr(type(m), 'base_class')}
        if adapted != own or (fitting and not fitting.is_on()):
            raise PlanError(
                f'the adapters of {type(self.model).__name__} were changed by other means than '
                f'this {type(self).__name__}: use one way only'
            )

    def _take_off(self) -> None:
        entry = self._entries.get(self._current or '')
        if entry is None or entry.fitting is None:
            return
        fitting = entry.fitting
        # They may have been trained while they were in use.
        entry.whole = {
            key: fitting.tensor(key).detach().clone()
            for key, value in self._base.items()
            if key in entry.whole or not torch.equal(fitting.tensor(key), value)
        }
        for key in entry.whole:  # the next one trains the same parameter
            grad, fitting.tensor(key).grad = fitting.tensor(key).grad, None
            if grad is not None:
                entry.grads[key] = grad
        fitting.take_off()
        with torch.no_grad():
            for key, value in self._base.items():
                fitting.tensor(key).copy_(value)
        self._base, self._current = {}, None
        for parameter, trained in self._trainable:
            parameter.requires_grad_(trained)

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """The model without its adapter, which is put on again afterwards."""
        before = self._current
        self.use(None)
        try:
            yield
        finally:
            self.use(before)
