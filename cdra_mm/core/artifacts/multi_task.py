"""Many tasks on one base: each has an adapter and a head of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cdra_mm.errors import ConfigError, PlanError

from ..adapters.mixed_weights import Group
from ..model.own_state import tensors_in
from ..model.row_int8 import RowInt8
from ..planning.plan import Plan
from .mixed_batch import MixedTask, run_mixed
from .named_adapters import NamedAdapters
from .sample_groups import grouped, map_samples
from .task_checks import check_own_head, check_task_name, refuse_training, tell_what_is_left_out
from .task_files import TaskFile, check_head, fill_head, read_task, save_task

__all__ = ['MultiTask']


class MultiTask(nn.Module):
    """Many tasks on one base, which is in memory once.

    Every task has an adapter of the base (`NamedAdapters`) and a head of any kind. One task is in
    use: the model computes, bit for bit, what base, adapter and head compute alone. A batch in
    which each sample names its task takes one pass through the base (`mixed_batch`).

    Args:
        backbone: The plain base. Its output is what the heads are given, so it should give all
            that any of them needs (tokens, feature maps).
        call: Name of the backbone's method that is called with the images, such as
            ``'forward_features'``; '' for the backbone itself.

    Raises:
        PlanError: If the backbone is adapted already.
        ConfigError: If it has no such method.

    Example:
        >>> from cdra_mm.core import MultiTask, plan_from_masks
        >>> from torch import nn
        >>> backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> plan = plan_from_masks({'0.weight': torch.ones(4, 4).bool()}, rank_rule=1)
        >>> model = MultiTask(backbone)
        >>> model.add('city', plan, head=nn.Linear(4, 3))
        >>> model.add('fields', plan, head=nn.Linear(4, 2), seed=1)
        >>> model.use('city')
        >>> tuple(model(torch.ones(5, 4)).shape)
        (5, 3)
        >>> [len(out) for out in model.eval()(torch.ones(2, 4), tasks=['fields', 'city'])]
        [2, 3]
    """

    def __init__(self, backbone: nn.Module, call: str = '') -> None:
        super().__init__()
        if call and not callable(getattr(backbone, call, None)):
            raise ConfigError(f'call={call!r}: {type(backbone).__name__} has no such method')
        self.backbone, self._call = backbone, call
        self.heads = nn.ModuleDict()
        self._named = NamedAdapters(backbone)
        self._classes: dict[str, tuple[str, ...]] = {}
        self._turn = threading.RLock()  # a mixed batch and a switch change the base meanwhile
        cast(Any, self).register_state_dict_post_hook(tell_what_is_left_out)

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, which cannot be copied."""
        return {key: value for key, value in self.__dict__.items() if key != '_turn'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        cast(Any, super()).__setstate__(state)
        self._turn = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return self._named.names

    @property
    def current(self) -> str | None:
        """The name of the task in use; None where it is none."""
        return self._named.current

    def add(
        self,
        name: str,
        source: str | Path | TaskFile | Plan,
        head: nn.Module | None = None,
        *,
        check_base: bool = True,
        may_differ: str | Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        """Adds a task; the one in use stays in use.

        Args:
            name: Its name; without a dot.
            source: A file of `save_task` or `save_adapter`, also one that was read already, or a
                plan for a task to be trained.
            head: Its head, called with what the backbone gives; it takes the values of a task
                file. None: the file's own where that is a linear layer, none where it has none.
            check_base: Refuse other base weights than those it was made for.
            may_differ: Names of those that may be others; see `load_adapter`.
            seed: Seed of the initial values of a plan's adapters.

        Raises:
            PlanError: If there is one of that name, or it does not fit the backbone.
            CheckpointError: If the file is missing, damaged, of other base weights, or its head is
                another than the one given.
        """
        check_task_name(name)
        task = read_task(source) if isinstance(source, str | Path) else source
        if not isinstance(task, Plan | TaskFile):
            raise PlanError(
                f'the source of {name!r} is a {type(task).__name__}: expected the path of a task '
                'file, or a plan'
            )
        like = next(self.backbone.parameters(), None)
        with torch.inference_mode(False):  # what is trained later cannot be made in it
            if head is None and isinstance(task, TaskFile):
                head = task.build_head(None if like is None else like.dtype)
            head = nn.Identity() if head is None else head
        check_own_head(name, head, self.backbone, dict(self.heads.items()))
        if isinstance(task, TaskFile) and task.kind:
            check_head(head, task)
        before = self.current
        self._named.add(
            name,
            task if isinstance(task, Plan) else task.adapter,
            check_base=check_base,
            may_differ=may_differ,
            seed=seed,
        )
        if isinstance(task, TaskFile) and task.kind:
            fill_head(head, task)
        with torch.inference_mode(False):
            self.heads[name] = head if like is None else head.to(like.device)
        self.heads[name].train(self.training)
        self._classes[name] = () if isinstance(task, Plan) else task.classes
        self.use(name)  # what the first use looks for is known from then on
        self.use(before)

    def use(self, name: str | None) -> None:
        """Makes a task the one that the model computes and trains; None gives the base alone.

        What the plan of the task trains and its head are trainable then, everything else frozen.

        Raises:
            PlanError: See `NamedAdapters.use`.
        """
        with self._turn:
            self._named.use(name)
            for other, head in self.heads.items():
                for parameter in head.parameters():
                    parameter.requires_grad_(other == name)

    def remove(self, name: str) -> None:
        """Drops a task; none is in use afterwards where it was this one.

        Raises:
            PlanError: See `NamedAdapters.use`.
        """
        self._named.remove(name)
        del self.heads[name]
        del self._classes[name]

    def classes_of(self, name: str) -> tuple[str, ...]:
        """The names of a task's classes, as its file has them; empty where unknown.

        Raises:
            PlanError: If there is none of that name.
        """
        self._named.plan_of(name)
        return self._classes[name]

    def save(self, name: str, path: str | Path, **options: Any) -> None:
        """Writes the file of a task.

        Args:
            name: The task; it need not be in use.
            path: The file.
            **options: Those of `save_task`; the classes are the task's own by default.

        Raises:
            PlanError: If there is none of that name.
            CheckpointError: See `save_task`.
        """
        options.setdefault('classes', self.classes_of(name))
        head = self.heads[name]
        before = self.current
        self.use(name)
        try:
            none = isinstance(head, nn.Identity)
            save_task(self.backbone, path, None if none else head, **options)
        finally:
            self.use(before)

    def forward(self, images: Any, tasks: Sequence[str] | None = None) -> Any:
        """What the task in use gives, or each sample's own.

        Args:
            images: What the backbone is called with, tensors ``[B, ...]``.
            tasks: The task of every sample; without gradients, and in evaluation mode only.

        Returns:
            What the head of the task in use gives; or a list of what each sample's head gives for
            it, without the dimension of the batch. The base's output where no task is in use.

        Raises:
            PlanError: If a task is unknown or cannot be mixed, or the model is in training mode.
        """
        if tasks is None:
            found = self.features(images)
            return found if self.current is None else self.heads[self.current](found)
        order, groups = grouped(images, tasks)
        for name in groups:
            self._named.plan_of(name)
        refuse_training(
            {'': self.backbone} | {f'heads.{name}': self.heads[name] for name in groups}
        )
        with self._turn:
            before = self.current
            try:
                with torch.no_grad():
                    given = map_samples(lambda tensor: tensor[order.to(tensor.device)], images)
                    outputs = self._each(given, groups)
            finally:
                self.use(before)
        by_sample: list[Any] = [None] * len(order)
        for place, output in zip(order.tolist(), outputs, strict=True):
            by_sample[place] = output
        return by_sample

    def features(self, images: Any) -> Any:
        """What the base gives, with the adapter of the task in use: what its head is given."""
        return (getattr(self.backbone, self._call) if self._call else self.backbone)(images)

    def _each(self, images: Any, groups: dict[str, Group]) -> list[Any]:
        """What each sample gives; the samples of a task follow each other."""
        if not groups:
            return []
        if len(groups) == 1:
            (name,) = groups
            self.use(name)
            features = self.features(images)
        else:
            self.use(None)
            mixed = [(group, self.task(name)) for name, group in groups.items()]
            features = run_mixed(self.backbone, self.features, images, mixed)
        outputs: list[Any] = []
        for name, (start, stop) in groups.items():
            part = map_samples(itemgetter(slice(start, stop)), features)
            found = self.heads[name](part)
            outputs += [map_samples(itemgetter(i), found) for i in range(stop - start)]
        return outputs

    def task(self, name: str) -> MixedTask:
        """What a task that is not in use changes of the base.

        Raises:
            PlanError: See `NamedAdapters.values_of`.
        """
        adapters, whole = self._named.values_of(name)
        return MixedTask(name, adapters, whole)

    def num_bytes(self) -> dict[str | None, int]:
        """Bytes of the base's tensors (under None) and of what each task adds, by name."""
        before = self.current
        self.use(None)
        try:
            found: dict[str | None, int] = {None: _bytes(self.backbone.state_dict())}
            for name in self.names:
                adapters, whole = self._named.values_of(name)
                held = [dict(adapter.state_dict(keep_vars=True)) for adapter in adapters.values()]
                buffers = [dict(adapter.named_buffers()) for adapter in adapters.values()]
                head = self.heads[name].state_dict()
                found[name] = _bytes([held, buffers, dict(whole), dict(head)])
        finally:
            self.use(before)
        return found


def _bytes(values: Any) -> int:
    """Of the memory that tensors have, each once."""
    found = tensors_in(cast(Any, values))
    parts = (
        part for t in found for part in ((t.codes, t.scales) if isinstance(t, RowInt8) else (t,))
    )
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (part.untyped_storage() for part in parts)
    }
    return sum(storages.values())
