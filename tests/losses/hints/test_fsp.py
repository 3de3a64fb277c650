import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import FSP
from kdengine.testing import check_loss

from .common import AWKWARD, course, features, on_features, prepared, random

FLOW = {"student": ["a", "b"], "teacher": ["a", "b"]}


def batch(sizes=((4, 4), (4, 4)), seeds=(0, 2), channels=(3, 2)):
    models = []
    for seed in seeds:
        shapes = zip("ab", channels, sizes, strict=True)
        models.append({path: random(4, width, *size, seed=seed + at) for at, (path, width, size) in enumerate(shapes)})
    return on_features(*models)


def matrix(first, last):
    """G_ij = sum_hw F_ihw L_jhw / (h w) of one item, in plain Python."""
    rows = [[channel.flatten().tolist() for channel in feature] for feature in (first, last)]
    return [[sum(x * y for x, y in zip(f, g, strict=True)) / len(f) for g in rows[1]] for f in rows[0]]


@pytest.mark.parametrize("pool", ["average", "max"])
def test_the_kit_accepts_flows_by_wildcard_that_change_their_size(pool):
    shapes = {"s1:input": (1, 4, 4), "s1": (2, 2, 2), "s2:input": (2, 3, 3), "s2": (2, 2, 2)}
    flow = ["s?:input", "s?"]
    check_loss(FSP, sample=features(shapes, shapes), student=flow, teacher=flow, pool=pool)


def test_each_item_is_the_mean_squared_error_of_its_matrices():
    found = batch()
    for item, value in enumerate(FSP(**FLOW).per_item(found).tolist()):
        ours, theirs = (
            matrix(output.features["a"][item], output.features["b"][item]) for output in (found.student, found.teacher)
        )
        squares = [(x - y) ** 2 for r, q in zip(ours, theirs, strict=True) for x, y in zip(r, q, strict=True)]
        assert value == pytest.approx(sum(squares) / 6, rel=1e-12)


def test_flows_add_up():
    found = batch(channels=(3, 3))
    flows = [["a", "b"], ["b", "a"], ["a", "a"]]
    single = [FSP(flow, flow).per_item(found) for flow in flows]
    torch.testing.assert_close(FSP(flows, flows).per_item(found), sum(single))


def test_the_larger_layer_of_a_flow_is_pooled_by_averages():
    found, pooled = batch(sizes=((4, 4), (2, 2))), batch(sizes=((4, 4), (2, 2)))
    for output in (pooled.student, pooled.teacher):
        output.features["a"] = output.features["a"].view(4, 3, 2, 2, 2, 2).mean(dim=(3, 5))
    torch.testing.assert_close(FSP(**FLOW).per_item(found), FSP(**FLOW).per_item(pooled))


def test_the_larger_layer_of_a_flow_is_pooled_by_maxima_as_in_the_paper():
    found, pooled = batch(sizes=((2, 2), (4, 4))), batch(sizes=((2, 2), (4, 4)))
    for output in (pooled.student, pooled.teacher):
        output.features["b"] = output.features["b"].unflatten(3, (2, 2)).unflatten(2, (2, 2)).amax(dim=(3, 5))
    assert torch.equal(FSP(**FLOW, pool="max").per_item(found), FSP(**FLOW).per_item(pooled))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ConfigurationError, match="fsp: pool must be 'average' or 'max', got 'mean'"):
        FSP(**FLOW, pool="mean")


def test_the_teachers_maps_may_have_another_size():
    found = batch()
    found.teacher.features.update({path: random(4, width, 6, 6) for path, width in (("a", 3), ("b", 2))})
    assert prepared(FSP(**FLOW), found).per_item(found).shape == (4,)


def test_equal_features_cost_nothing():
    found = batch(seeds=(0, 0))
    for value in found.student.features.values():
        value.requires_grad_()
    total = FSP(**FLOW).per_item(found).sum()
    assert total == 0
    assert not any(g.any() for g in torch.autograd.grad(total, list(found.student.features.values())))


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_awkward_features_give_a_finite_value_and_gradient(name, dtype):
    awkward = AWKWARD[name]((3, 2, 4, 4))
    for ours, theirs in ((awkward, random(3, 2, 4, 4)), (random(3, 2, 4, 4), awkward), (awkward, awkward)):
        student = ours.to(dtype)
        if name.startswith("as large"):  # no half precision holds this gradient, which is cubic
            student = student.float()
        student.requires_grad_()
        found = on_features({"a": student, "b": student}, {"a": theirs.to(dtype), "b": theirs.to(dtype)})
        total = FSP(**FLOW).per_item(found).sum()
        assert total.isfinite()
        assert torch.autograd.grad(total, student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            {"a": (3, 4, 4), "b": (2, 4, 4)},
            {"a": (3, 4, 4), "b": (5, 4, 4)},
            r"FSP: student 'a' \(2, 3, 4, 4\) to 'b' \(2, 2, 4, 4\) and teacher 'a' \(2, 3, 4, 4\) to "
            r"'b' \(2, 5, 4, 4\): expected as many channels",
        ),
        ({"a": (3,), "b": (2,)}, {"a": (3,), "b": (2,)}, r"'a' \(2, 3\) to 'b' \(2, 2\) .* expected feature maps"),
    ],
    ids=["channels", "vectors"],
)
def test_shapes_that_cannot_be_matched_are_refused_with_their_paths(student, teacher, message):
    example = features(student, teacher)(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=message):
        prepared(FSP(**FLOW), example)


def test_numbers_of_layers_that_do_not_agree_are_refused():
    found = features({"a1": (1, 2, 2), "a2": (1, 2, 2), "b": (1, 2, 2)}, {"a": (1, 2, 2)})(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"student=\['a\*', 'b'\] names 2 first layers \(a1, a2\) and 1 last"):
        FSP(["a*", "b"], ["a", "a"]).setup(found)
    with pytest.raises(ConfigurationError, match=r"student=.* names 2 and teacher=\[\['a', 'a'\]\] names 1"):
        FSP(["a*", "a*"], ["a", "a"]).setup(found)


@pytest.mark.parametrize("flows", ["layer1", ["layer1"], ["a", "b", "c"], [["a", "b"], ["c"]], [["a", "b"], "cd"], []])
def test_what_is_no_flow_is_refused(flows):
    with pytest.raises(ConfigurationError, match="FSP: student must be the paths of a first and of a last layer"):
        FSP(flows, ["a", "b"])


def test_a_fit_lowers_it():
    flow = ["stage?:input", "stage?"]
    losses = course(FSP(flow, flow), width=8)
    assert losses[-1] < 0.5 * losses[0]
