import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import RKD
from kdengine.losses.relations.embeddings import unit, vectors

from ..outputs import batch_of, logits
from .common import on_features


def test_logits_are_compared_unless_paths_are_given():
    assert RKD().needs.logits
    assert RKD().needs.student_features == ()
    needs = RKD(student="hidden", teacher="relu").needs
    assert (needs.logits, needs.student_features, needs.teacher_features) == (False, ("hidden",), ("relu",))


@pytest.mark.parametrize("paths", [{"student": "hidden"}, {"teacher": "hidden"}])
def test_a_path_in_one_model_only_is_refused(paths):
    with pytest.raises(ConfigurationError, match=r"rkd: student=.* and teacher=.*expected paths of features in both"):
        RKD(**paths)


def test_several_pairs_add_up():
    first, second = (on_features(logits(seed=seed), logits(seed=seed + 1)) for seed in (2, 4))
    both = on_features(logits(), logits())
    for who in ("student", "teacher"):
        one, other = (getattr(batch, who).features["hidden"] for batch in (first, second))
        getattr(both, who).features = {"a": one, "b": other}
    single = RKD(student="hidden", teacher="hidden")
    parts = [sum(single.value(batch).values()) for batch in (first, second)]
    total = sum(RKD(student=["a", "b"], teacher=["a", "b"]).value(both).values())
    torch.testing.assert_close(total, sum(parts))


def test_different_numbers_of_paths_are_refused():
    batch = on_features(logits(), logits())
    batch.teacher.features = {"hidden": logits(), "relu": logits()}
    with pytest.raises(ConfigurationError, match="compares features in pairs"):
        RKD(student="hidden", teacher=["hidden", "relu"]).value(batch)


def test_a_feature_is_flattened_or_pooled_over_its_positions():
    maps, tokens = torch.randn(2, 3, 4, 5), torch.randn(2, 7, 6)
    assert torch.equal(vectors(maps), maps.reshape(2, 60))
    torch.testing.assert_close(vectors(maps, pool=True), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(vectors(tokens, pool=True), tokens.mean(dim=1))
    assert torch.equal(vectors(maps[:, :, 0, 0], pool=True), maps[:, :, 0, 0])
    assert vectors(torch.randn(3)).shape == (3, 1)
    assert vectors(torch.randn(0, 3, 4)).shape == (0, 12)


def test_pooled_features_are_what_is_compared():
    maps = [torch.randn(6, 5, 2, 2, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    pooled = RKD(student="hidden", teacher="hidden", pool=True).value(on_features(*maps))
    given = RKD().value(batch_of(*(feature.mean(dim=(2, 3)) for feature in maps)))
    torch.testing.assert_close(pooled, given)


def test_logits_of_tokens_are_flattened():
    student, teacher = (logits(12, seed=seed).view(3, 4, 5) for seed in (0, 1))
    flat = RKD().value(batch_of(student.flatten(1), teacher.flatten(1)))
    torch.testing.assert_close(RKD().value(batch_of(student, teacher)), flat)


def test_half_precision_is_widened():
    student, teacher = logits().half(), logits(seed=1).half()
    torch.testing.assert_close(
        RKD().value(batch_of(student, teacher)), RKD().value(batch_of(student.float(), teacher.float()))
    )


def test_a_vector_of_zeros_stays_and_has_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = unit(rows)
    found.square().sum().backward()
    assert found.tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]
    assert torch.allclose(rows.grad, torch.zeros(2, 2), atol=1e-6)
    assert unit(rows)[1].sum().backward() is None
