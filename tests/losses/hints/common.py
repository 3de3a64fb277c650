"""What the tests of losses on features share: batches, features that losses stumble over, a small fit."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import kdengine
from kdengine.api import Batch, Output
from kdengine.engine.engine import Engine


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_features(student, teacher, model=None):
    """A batch with these features: a tensor at the path ``hidden``, or several by path; and the teacher's module."""
    student, teacher = (value if isinstance(value, dict) else {"hidden": value} for value in (student, teacher))
    batch = Batch(torch.zeros(len(next(iter(student.values()))), 1))
    batch.student = Output(None, None, student)
    batch.teacher = Output(None, None, teacher, model)
    return batch


def features(student, teacher, model=None):
    """A sampler for the kit, with features of these shapes: one at ``hidden``, or several by path."""

    def sample(size, generator):
        def make(shapes):
            named = shapes if isinstance(shapes, dict) else {"hidden": shapes}
            return {k: torch.randn(size, *v, generator=generator, dtype=torch.float64) for k, v in named.items()}

        return on_features(make(student), make(teacher), model)

    return sample


PATHS = {"student": "hidden", "teacher": "hidden"}
STAGES = {"student": ["stage1", "stage2"], "teacher": ["stage1", "stage2"]}

AWKWARD = {
    "zeros": lambda shape: torch.zeros(shape).double(),
    "zeros in one item": lambda shape: random(*shape) * (torch.arange(shape[0]) > 0).view(-1, 1, 1, 1),
    "zeros in one channel": lambda shape: random(*shape) * (torch.arange(shape[1]) > 0).view(1, -1, 1, 1),
    "zeros in one position": lambda shape: random(*shape) * (torch.arange(shape[3]) > 0),
    "one value everywhere": lambda shape: torch.full(shape, 2.0).double(),
    "negative": lambda shape: -random(*shape).abs(),
    "tiny": lambda shape: 1e-30 * random(*shape),
    "as large as float16 goes": lambda shape: 65504.0 * random(*shape).sign(),
}
"""Feature maps by what is awkward about them."""


def prepared(loss, batch):
    """The loss after its setup on a batch, with parameters that are always the same, in the batch's precision."""
    if isinstance(loss.projector, str):
        from kdengine.host import Host

        loss.projector = Host(autoload=False).component("projectors", loss.projector).load()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        loss.setup(batch)
    return loss.to(next(iter(batch.student.features.values())).dtype)


def value_and_gradients(loss, student, teacher, dtype=torch.float64, model=None, weight=1.0):
    """The sum of all items and terms, and its gradient by the student's features and the loss's parameters."""
    wide = torch.promote_types(dtype, torch.float32)
    loss = prepared(loss, on_features(student.to(wide), teacher.to(wide), model))
    student = student.to(dtype).requires_grad_()
    batch = on_features(student, teacher.to(dtype), model)
    values = loss.per_item(batch) if loss.scope == "item" else loss.value(batch)
    values = list(values.values()) if isinstance(values, dict) else [values]
    total = weight * sum(value.sum() for value in values)
    leaves = [student, *loss.parameters()]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return total.detach(), [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def assert_gradient(loss, student, teacher, model=None):
    """The gradient by the student's features and the loss's parameters is that of finite differences."""
    batch = on_features(student, teacher, model)
    loss = prepared(loss, batch)

    def total(*_):
        values = loss.per_item(batch) if loss.scope == "item" else loss.value(batch)
        return sum(value.sum() for value in (values.values() if isinstance(values, dict) else [values]))

    torch.autograd.gradcheck(total, [student.requires_grad_(), *loss.parameters()], fast_mode=True)


def assert_finite_where_awkward(loss, student=(3, 2, 4, 4), teacher=(3, 2, 4, 4), **options):
    """Value and gradient are finite for every awkward feature of either model or both, in three precisions.

    Args:
        loss: makes the loss.
        student: shape of the student's feature.
        teacher: shape of the teacher's feature.
        options: the teacher's module, and the weight that the loss is meant for.
    """
    for name, awkward in AWKWARD.items():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            ordinary = random(*student, seed=5), random(*teacher, seed=6)
            for pair in (
                (awkward(student), ordinary[1]),
                (ordinary[0], awkward(teacher)),
                (awkward(student), awkward(teacher)),
            ):
                value, gradients = value_and_gradients(loss(), *pair, dtype=dtype, **options)
                assert value.isfinite(), (name, dtype)
                assert all(gradient.isfinite().all() for gradient in gradients), (name, dtype)


class SmallNet(nn.Module):
    """Two stages on images of 8 x 8: ``(B, width, 8, 8)`` and ``(B, 2 width, 4, 4)``, each with a normalization."""

    def __init__(self, width):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 3)

    def forward(self, images):
        maps = self.stage2(self.stage1(images))
        return self.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))


def fit(losses, epochs=8, width=4, lr=0.05, items=32, **options):
    """A small convolutional network distils a wider one; returns the engine's result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = SmallNet(8), SmallNet(width)
        data = TensorDataset(torch.randn(items, 1, 8, 8), torch.randint(3, (items,)))
        engine = Engine(
            student,
            teacher,
            losses=losses if isinstance(losses, dict) else {"own": losses},
            optimizer=lambda named: torch.optim.Adam([parameter for _, parameter in named], lr=lr),
            device="cpu",
            seed=0,
            loggers=[],
            **options,
        )
        return engine.fit(kdengine.loader(data, batch_size=8, seed=0), epochs=epochs)


def course(loss, term="own", **options):
    """The mean of a term in each epoch of a small fit."""
    return [record[term] for record in fit(loss, **options).history]
