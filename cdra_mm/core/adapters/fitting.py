"""A plan's adapters on a model as one piece: taken off, and put on again as they were.

Putting adapters on for the first time looks at every module (who shares a weight, which blocks
overlap, what is trained). All that is found is kept here, so that later only the objects change
places: the child ``cdra`` and the class of each adapted module, the notes of the model, and what is
trainable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from .adapted import NOTES
from .adapter import Adapter
from .adapter_set import AdapterSet
from .copied_weights import attach_copies, carriers, detach_from, product_of
from .layers import adapted_class

__all__ = ['Fitting', 'Place', 'places_of', 'record_fitting']

# The parameters or buffers of a module, and a name in them: the tensor there may be replaced.
Place = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Fitting:
    """The adapters of one plan, fitted to a model.

    Attributes:
        model: The model.
        carried: The adapted modules, each with its adapted class and its adapters.
        notes: What the model knows of itself while they are on it.
        places: Where the model's own tensors are that change with them, by name.
        trainable: Its own parameters, and whether each is trained with them.
    """

    model: nn.Module
    carried: tuple[tuple[nn.Module, type[nn.Module], AdapterSet], ...]
    notes: dict[str, Any]
    places: dict[str, Place]
    trainable: tuple[tuple[Place, bool], ...]

    def __getstate__(self) -> dict[str, Any]:
        """With what the adapted classes are made of: they cannot be found by their names."""
        carried = tuple((m, cast(Any, adapted).made_of, own) for m, adapted, own in self.carried)
        return {**self.__dict__, 'carried': carried}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With the classes made again."""
        carried = tuple((m, adapted_class(*made_of), own) for m, made_of, own in state['carried'])
        self.__dict__.update({**state, 'carried': carried})

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters."""
        return [a for _, _, own in self.carried for a in cast('Iterable[Adapter]', own.children())]

    def tensor(self, name: str) -> Tensor:
        """One of the model's own tensors that change."""
        held, key = self.places[name]
        return cast(Tensor, held[key])

    def is_on(self) -> bool:
        """Whether the model carries them, all of them and unchanged."""
        return all(
            type(module) is adapted and module._modules.get('cdra') is own
            for module, adapted, own in self.carried
        )

    def take_off(self) -> None:
        """Makes the model plain; what the adapters have learnt stays with them."""
        for adapter in self.adapters:
            adapter.detach(self.model)
        for module, adapted, _ in self.carried:
            del module._modules['cdra']
            module.__class__ = cast(Any, adapted).base_class
        detach_from(self.model)
        for note in NOTES:
            self.model.__dict__.pop(note, None)

    def put_on(self) -> None:
        """Puts them on the plain model, on its device and in its mode; freezes the rest."""
        product = product_of(self.model)
        for module, adapted, own in self.carried:
            like = next(iter(module._parameters.values()), None)
            for adapter in cast('Iterable[Adapter]', own.children()):
                first = next(iter(adapter._parameters.values()), None)
                if like is not None and first is not None and first.device != like.device:
                    adapter.to(like.device)
                if adapter.training != module.training:
                    adapter.train(module.training)
            own.training, own.product = module.training, product
            module._modules['cdra'] = own
            module.__class__ = adapted
        if self.carried:
            attach_copies(self.model)
        for adapter in self.adapters:
            adapter.attach(self.model)
            for parameter in adapter.parameters():
                parameter.requires_grad_(True)
        for (held, key), trained in self.trainable:
            held[key].requires_grad_(trained)
        self.model.__dict__.update(self.notes)


def record_fitting(model: nn.Module, names: Iterable[str]) -> Fitting:
    """What was changed of a model when its adapters were put on.

    Args:
        model: The adapted model, as `freeze_rest` has left it.
        names: Its own tensors that change with the adapters.
    """
    found = carriers(model)
    places, own = places_of(model), {id(adapters) for adapters in _sets(found)}
    trainable = [
        ((module._parameters, key), parameter.requires_grad)
        for module in _outside(model, own)
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]
    return Fitting(
        model,
        tuple((module, type(module), cast(AdapterSet, module.cdra)) for module in found),
        {note: model.__dict__[note] for note in NOTES if note in model.__dict__},
        {name: places[name] for name in names},
        tuple(trainable),
    )


def places_of(model: nn.Module) -> dict[str, Place]:
    """Where every parameter and buffer of a model is, by each of its names."""
    found: dict[str, Place] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for key in held:
                found[f'{path}.{key}'.removeprefix('.')] = cast('dict[str, Any]', held), key
    return found


def _sets(carrying: Iterable[nn.Module]) -> list[nn.Module]:
    return [cast(nn.Module, module.cdra) for module in carrying]


def _outside(module: nn.Module, adapters: set[int]) -> list[nn.Module]:
    """The modules of a model but for its adapters."""
    if id(module) in adapters:
        return []
    return [module, *(m for child in module.children() for m in _outside(child, adapters))]
