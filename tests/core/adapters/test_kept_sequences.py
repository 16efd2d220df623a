"""What happens to a model in any order: kept copies compute what no copies do, in each forward."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from tests.core.problems import adapted, by_blocks
from tests.models import images

FACTORS = ('.down', '.up')
FEW = {
    'zero': lambda values, i, j: values[i].fill_(0),
    'sign': lambda values, i, j: values[i].neg_(),
    'little': lambda values, i, j: values[i].add_(1e-3),
    'exchange': lambda values, i, j: values.index_copy_(0, torch.tensor([i, j]), values[[j, i]]),
}


class Pair:
    """Two models to which the same happens, one that keeps copies and one that has none."""

    def __init__(self, recompute: str) -> None:
        self.models = []
        for product in ('kept', 'factored'):
            model = adapted('fused', dtype=torch.float64)[1]
            choose_product(model, product)
            if recompute != 'none':
                model = by_blocks(model, recompute == 'reentrant')
            self.models.append(model)
        self.saved = [copy.deepcopy(model.state_dict()) for model in self.models]
        self.averaged = [[p.data * 0.9 for p in self.low_rank(model)] for model in self.models]

    @staticmethod
    def low_rank(model):
        return [p for name, p in model.named_parameters() if name.endswith(FACTORS)]

    @staticmethod
    def matrices(model, frozen):
        named = model.named_parameters()
        return [p for name, p in named if name.endswith(FACTORS) != frozen and p.dim() == 2]

    def write_few(self, draw):
        write, frozen, at = FEW[draw.choice(sorted(FEW))], draw.random() < 0.7, draw.random()
        for model in self.models:
            found = self.matrices(model, frozen)
            values = found[int(at * len(found))].data.view(-1)
            i = int(at * 1e6) % len(values)
            write(values, i, (i * 7 + 1) % len(values))

    def write_all(self, draw):
        frozen, at, through = draw.random() < 0.5, draw.random(), draw.choice(['data', 'new', ''])
        for model in self.models:
            found = self.matrices(model, frozen)
            parameter = found[int(at * len(found))]
            with torch.no_grad():
                if through == 'new':
                    parameter.data = parameter.data * 1.1
                else:
                    (parameter.data if through else parameter).mul_(1.1)

    def merge(self, draw):
        """Or takes out of the weight again."""
        at = draw.random()
        for model in self.models:
            found = [m for m in carriers(model) if list(m.cdra.of('weight', merged=True))]
            module = found[int(at * len(found))]
            adapter = list(module.cdra.of('weight', merged=True))[-1]
            adapter.merge_(module, -1 if adapter.merged else 1)

    def average(self, draw):
        for model, averaged in zip(self.models, self.averaged, strict=True):
            for i, p in enumerate(self.low_rank(model)):
                p.data, averaged[i] = averaged[i], p.data

    def load(self, draw):
        for model, saved in zip(self.models, self.saved, strict=True):
            model.load_state_dict(saved)

    def train(self, draw):
        x, found = images(draw.randrange(1, 4), torch.float64)[0], []
        for model in self.models:
            model.zero_grad()
            y = model(x)
            y.square().mean().backward()
            trained = [p for p in model.parameters() if p.grad is not None]
            found.append([y.detach(), *(p.grad for p in trained)])
            for p in trained:
                p.data.sub_(p.grad, alpha=0.05)
        self.compare(found)

    def look(self, draw):
        x, mode = images(draw.randrange(1, 4), torch.float64)[0], draw.choice(['graph', 'no', 'in'])
        grad = torch.inference_mode(mode == 'in') if mode != 'no' else torch.no_grad()
        with grad:
            self.compare([[model(x).clone().detach()] for model in self.models])

    def write_within(self, draw):
        x, state, at, found = images(2, torch.float64)[0], draw.getstate(), draw.randrange(2), []
        both = self.models
        for model in both:
            draw.setstate(state)
            self.models = [model]
            block = model.blocks[at]
            with block.register_forward_pre_hook(lambda *_: self.write_few(draw)):
                found.append([model(x).detach()])
        self.models = both
        self.compare(found)

    def pend(self, draw):
        """A graph is there while the factors change and another forward runs."""
        x = images(2, torch.float64)[0]
        pending = [model(x) for model in self.models]
        for model in self.models:
            for p in self.low_rank(model):
                p.data.mul_(1.01)
        self.compare([[model(x).detach()] for model in self.models])
        assert all(y.requires_grad for y in pending)

    @staticmethod
    def compare(found):
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('recompute', ['none', 'reentrant', 'not_reentrant'])
@pytest.mark.parametrize('seed', range(3))
def test_kept_copies_compute_what_no_copies_do(recompute, seed):
    draw, pair = random.Random(seed), Pair(recompute)
    happens = [pair.write_few, pair.write_all, pair.average, pair.load, pair.train, pair.look]
    happens += [pair.write_within, pair.pend, pair.train, pair.look, pair.write_few]
    happens += [pair.merge]
    for _ in range(25):
        draw.choice(happens)(draw)
    pair.look(draw)
