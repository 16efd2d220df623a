"""What is trained of a base in half precision is trained in fp32.

A step of training is smaller than the rounding of bfloat16 (2^-9 of a value): a weight that is
trained in it stands still. Factors and single entries are fp32 beside any base (`master_dtype`). A
vector that a plan trains whole is trained as all of its entries there: the base keeps its value,
and the sum is rounded when it is used.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from ..model.targets import parameter_of, resolve
from ..planning.plan import Plan, Vector
from .low_rank import master_dtype

__all__ = ['with_masters']


def with_masters(model: nn.Module, plan: Plan) -> Plan:
    """The plan with every vector of a base in half precision as single entries.

    Of parameters that are trained whole without competing (`Plan.also_train`) it warns.

    Args:
        model: A model that the plan fits.
        plan: The plan; it comes back as it is where the base is in fp32.
    """

    def is_narrow(name: str) -> bool:
        parameter = parameter_of(model, resolve(model, name))
        return parameter.dtype != master_dtype(parameter)

    def in_entries(vector: Vector) -> Vector:
        if vector.indices is not None or not is_narrow(vector.name):
            return vector
        return replace(vector, indices=tuple(range(vector.length)))

    vectors = tuple(map(in_entries, plan.vectors))
    narrow = [name for name in plan.also_train if is_narrow(name)]
    if narrow:
        warnings.warn(
            f'{len(narrow)} parameters are trained whole in half precision (the first is '
            f'{narrow[0]}): steps below the rounding of their values are lost; take them out of '
            'also_train, or keep them in fp32',
            stacklevel=3,
        )
    return plan if vectors == plan.vectors else replace(plan, vectors=vectors)
