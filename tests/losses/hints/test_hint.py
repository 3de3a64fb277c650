import pytest
import torch
from safetensors.torch import load_file

from kdengine.api import Batch, Output
from kdengine.losses import Hint
from kdengine.projectors.projectors import auto
from kdengine.testing import check_loss, tiny_run
from kdengine.testing.run import descend, perceptron

PATHS = {"student": "hidden", "teacher": "hidden"}


def features(student_shape, teacher_shape):
    """A sampler for the kit, with features of these shapes."""

    def sample(size, generator):
        batch = Batch(torch.zeros(size, 1))
        for who, shape in (("student", student_shape), ("teacher", teacher_shape)):
            value = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
            setattr(batch, who, Output(None, None, {"hidden": value}))
        return batch

    return sample


@pytest.mark.parametrize(
    ("projector", "student", "teacher"),
    [
        ("auto", (6,), (6,)),
        ("auto", (6,), (8,)),
        ("linear", (6,), (6,)),
        ("auto", (2, 3, 3), (4, 3, 3)),
        ("auto", (2, 3, 3), (3, 2, 2)),
    ],
)
def test_the_kit_accepts_every_projector(projector, student, teacher):
    check_loss(Hint, sample=features(student, teacher), projector=projector, **PATHS)


def test_per_item_is_half_the_square_of_the_regressors_error():
    torch.manual_seed(0)
    batch = features((3,), (2,))(4, torch.Generator().manual_seed(0))
    loss = Hint(**PATHS, projector=auto)
    loss.setup(batch)
    loss.double()
    weight, bias = (value.tolist() for value in loss.regressor.parameters())
    for at, value in enumerate(loss.per_item(batch).tolist()):
        s, t = batch.student.features["hidden"][at].tolist(), batch.teacher.features["hidden"][at].tolist()
        mapped = [sum(w * x for w, x in zip(row, s, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        assert value == pytest.approx([0.5 * (a - b) ** 2 for a, b in zip(mapped, t, strict=True)], abs=1e-12)


def test_a_fit_trains_the_regressor_and_does_not_export_it(tmp_path):
    seen, seen_before = [], []

    def watched(named):
        own = [(name, parameter) for name, parameter in named if name.startswith("losses.")]
        seen.extend(own)
        seen_before.extend(parameter.detach().clone() for _, parameter in own)
        return descend(named)

    loss = Hint(**PATHS)
    fitted = tiny_run({"hint": loss}, out=tmp_path / "run", optimizer=watched).result
    assert any(name.startswith("losses.hint") for name, _ in seen)
    assert all(bool((parameter != before).any()) for (_, parameter), before in zip(seen, seen_before, strict=True))
    assert set(load_file(fitted.out / "student.safetensors")) == set(perceptron(8).state_dict())
