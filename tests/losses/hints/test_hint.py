import pytest
import torch
from safetensors.torch import load_file

import kdengine
from kdengine.api import Batch, Output
from kdengine.losses import Hint
from kdengine.projectors.projectors import auto
from kdengine.testing import check_loss, tiny_run
from kdengine.testing.run import descend, perceptron

PATHS = {"student": "hidden", "teacher": "hidden"}


def features(student_shapes, teacher_shapes=None, names=("hidden", "other", "last")):
    """A sampler for the kit, with features of these shapes."""

    def sample(size, generator):
        batch = Batch(torch.zeros(size, 1))
        for who, shapes in (("student", student_shapes), ("teacher", teacher_shapes or student_shapes)):
            values = {
                name: torch.randn(size, *shape, generator=generator, dtype=torch.float64)
                for name, shape in zip(names, shapes, strict=False)
            }
            setattr(batch, who, Output(None, None, values))
        return batch

    return sample


@pytest.mark.parametrize(
    ("projector", "student", "teacher"),
    [
        ("auto", (6,), (6,)),
        ("auto", (6,), (8,)),
        ("linear", (6,), (6,)),
        ("mlp", (6,), (4,)),
        ("auto", (2, 3, 3), (4, 3, 3)),
        ("auto", (2, 3, 3), (3, 2, 2)),
        ("auto", (5, 3), (10, 2)),
        ("auto", (2, 4, 4), (5, 3)),
        ("resize", (2, 3, 3), (2, 2, 2)),
        ("sequence", (4, 3), (9, 2)),
    ],
)
def test_the_kit_accepts_every_projector(projector, student, teacher):
    check_loss(Hint, sample=features([student], [teacher]), projector=projector, **PATHS)


def test_its_factor_does_not_hide_the_change_of_precision_of_a_module():
    loss = Hint(**PATHS, half=False)
    loss.regressors.append(torch.nn.Linear(2, 2))
    assert {parameter.dtype for parameter in loss.half().parameters()} == {torch.float16}


def test_the_kit_accepts_several_pairs_of_different_shapes():
    names = ["hidden", "other", "last"]
    shapes = [(6,), (2, 3, 3), (4, 3)], [(5,), (3, 2, 2), (7, 4)]
    check_loss(Hint, sample=features(*shapes), student=names, teacher=names)


def test_per_item_is_half_the_square_of_the_regressors_error():
    torch.manual_seed(0)
    batch = features([(3,)], [(2,)])(4, torch.Generator().manual_seed(0))
    loss = Hint(**PATHS, projector=auto)
    loss.setup(batch)
    loss.double()
    weight, bias = (value.tolist() for value in loss.regressors.parameters())
    for at, value in enumerate(loss.per_item(batch).tolist()):
        s, t = batch.student.features["hidden"][at].tolist(), batch.teacher.features["hidden"][at].tolist()
        mapped = [sum(w * x for w, x in zip(row, s, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        squares = [0.5 * (a - b) ** 2 for a, b in zip(mapped, t, strict=True)]
        assert value == pytest.approx(sum(squares) / len(squares), abs=1e-12)


def test_every_pair_counts_alike_however_many_elements_it_has():
    batch = features([(3,), (2, 4, 4)])(5, torch.Generator().manual_seed(0))
    loss = Hint(student="*", teacher=["hidden", "other"], projector=auto)
    loss.setup(batch)
    single = []
    for name in ("hidden", "other"):
        error = batch.student.features[name] - batch.teacher.features[name]
        single.append(0.5 * error.square().flatten(1).mean(1))
    assert loss.per_item(batch).shape == (5,)
    torch.testing.assert_close(loss.per_item(batch), (single[0] + single[1]) / 2)


def test_a_fit_trains_every_regressor_and_does_not_export_it(tmp_path):
    seen, seen_before = [], []

    def watched(named):
        own = [(name, parameter) for name, parameter in named if name.startswith("losses.")]
        seen.extend(own)
        seen_before.extend(parameter.detach().clone() for _, parameter in own)
        return descend(named)

    loss = Hint(student=["hidden", "head:input"], teacher=["hidden", "relu"])
    fitted = tiny_run({"hint": loss}, out=tmp_path / "run", optimizer=watched, clip=0.5).result
    assert [name for name, _ in seen] == [
        f"losses.hint.regressors.{at}.linear.{which}" for at in range(2) for which in ("weight", "bias")
    ]
    assert all(bool((parameter != before).any()) for (_, parameter), before in zip(seen, seen_before, strict=True))
    assert set(load_file(fitted.out / "student.safetensors")) == set(perceptron(8).state_dict())


def test_regressors_of_several_pairs_go_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    def fit(out, epochs, resume=None):
        loss = Hint(student=["hidden", "*:input"], teacher=["hidden", "*:input"])
        tiny_run({"hint": loss}, out=out, epochs=epochs, resume=resume)
        return loss.state_dict()

    fit(tmp_path / "parts", 1)
    parts, whole = fit(tmp_path / "parts", 3, "auto"), fit(tmp_path / "whole", 3)
    assert len(parts) == 2 * 3, "of hidden, and of the inputs of relu and head; that of hidden needs none"
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())


def test_clipping_takes_the_regressors_in():
    def moved(clip):
        torch.manual_seed(1)
        loss = Hint(**PATHS)
        before = []

        def watched(named):
            before.extend(parameter.detach().clone() for name, parameter in named if name.startswith("losses."))
            return descend(named)

        tiny_run({"hint": loss}, optimizer=watched, clip=clip, batch_size=32)
        return (
            sum(float((p.detach() - b).square().sum()) for p, b in zip(loss.parameters(), before, strict=True)) ** 0.5
        )

    assert 0 < moved(1e-3) <= 1e-4 * (1 + 1e-4), "a step of 0.1 times the clipped norm"
    assert moved(None) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"student": "head", "teacher": "relu", "projector": "conv1x1"},
            "student 'head' and teacher 'relu': projector",
        ),
        ({"student": "h*", "teacher": "relu"}, r"names 2 \(hidden, head\) and teacher=\['relu'\] names 1 \(relu\)"),
    ],
)
def test_pairs_that_cannot_be_matched_name_the_loss(arguments, said):
    with pytest.raises(kdengine.ConfigurationError, match=rf"^losses\.mine: .*{said}"):
        tiny_run({"mine": Hint(**arguments)})


def test_a_projector_of_no_known_name_names_the_loss_and_the_key():
    with pytest.raises(kdengine.ConfigurationError, match=r"^losses\.mine\.projector: .*liner.*'linear'"):
        tiny_run({"mine": Hint(**PATHS, projector="liner")})


@pytest.mark.parametrize("paths", [[], None, [1]])
def test_paths_that_are_none_are_refused(paths):
    with pytest.raises(kdengine.ConfigurationError, match="Hint: student must be the path of a module, or several"):
        Hint(student=paths, teacher="hidden")
