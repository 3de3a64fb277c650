"""Mixup and cutmix."""

import pytest
import torch

from kdengine.api import Batch, ConfigurationError
from kdengine.data.mixing import CutMix, MixUp, beta

CLASSES = 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(size=8, labels=None, mask=None, shape=(1, 6, 6)):
    """Item i holds the value i + 1 everywhere, so that a mixture shows its sources."""
    inputs = torch.arange(1.0, size + 1).view(-1, *[1] * len(shape)).expand(size, *shape).clone()
    labels = torch.arange(size) % CLASSES if labels is None else labels
    return Batch(inputs, labels, torch.arange(size), mask)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_randomness_comes_from_the_generator_alone(kind):
    transform, results = kind(CLASSES), []
    for _ in range(2):
        before = torch.get_rng_state()
        results.append(transform(make(), generator(3)))
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(5)
    assert torch.equal(results[0].inputs, results[1].inputs)
    assert torch.equal(results[0].labels, results[1].labels)
    assert not torch.equal(results[0].inputs, transform(make(), generator(4)).inputs)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("seed", range(5))
def test_inputs_and_labels_are_mixed_by_the_same_share(kind, seed):
    """Equation 1 of mixup; for cutmix, the mean over the image gives the share of the area."""
    batch = make(size=CLASSES)
    mixed = kind(CLASSES, alpha=1.0)(batch, generator(seed))
    sources = torch.arange(1.0, CLASSES + 1)
    torch.testing.assert_close(mixed.inputs.mean(dim=(1, 2, 3)), mixed.labels @ sources)
    torch.testing.assert_close(mixed.labels.sum(dim=1), torch.ones(CLASSES))
    assert ((mixed.labels > 0).sum(dim=1) <= 2).all()
    assert torch.equal(batch.inputs, make(size=CLASSES).inputs), "the given batch was changed"


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_mixed_items_are_no_longer_samples_of_the_data_set(kind):
    mixed = kind(CLASSES)(make(), generator())
    assert mixed.index is None
    assert mixed.size == 8


def test_cutmix_replaces_one_rectangle():
    batch = make(shape=(2, 16, 16))
    for seed in range(20):
        mixed = CutMix(CLASSES)(batch, generator(seed)).inputs
        changed = mixed != batch.inputs
        where = changed.any(dim=1).any(dim=0)  # (16, 16)
        rows, columns = where.any(dim=1), where.any(dim=0)
        assert torch.equal(where, rows.unsqueeze(1) & columns.unsqueeze(0))
        for line in (rows, columns):
            assert line.int().diff().abs().sum() <= 2, "the rectangle has a gap"
        assert torch.equal(changed.any(dim=1), changed.all(dim=1)), "channels differ"


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_p_is_the_probability_of_mixing(kind):
    batch = make()
    same = [torch.equal(kind(CLASSES, p=0.3)(batch, generator(s)).inputs, batch.inputs) for s in range(300)]
    assert 0.6 < sum(same) / 300 < 0.85  # cutmix may draw an empty rectangle
    never = kind(CLASSES, p=0.0)(batch, generator())
    assert torch.equal(never.inputs, batch.inputs)
    assert torch.equal(never.labels, torch.nn.functional.one_hot(batch.labels, CLASSES).float())


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_an_unlabelled_source_leaves_the_item_unlabelled(kind):
    labels = torch.tensor([0, 1, -100, 3, 4])
    batch = make(size=5, labels=labels)
    for seed in range(10):
        mixed = kind(CLASSES, alpha=1.0)(batch, generator(seed))
        whole = kind(CLASSES, alpha=1.0)(make(size=5), generator(seed))
        touched = whole.labels[:, 2] > 0
        touched[2] = True
        assert torch.equal(mixed.labels[~touched], whole.labels[~touched])
        unlabelled = (mixed.labels == 0).all(dim=1)
        assert unlabelled[2]
        assert unlabelled[touched].all()


def test_unmixed_unlabelled_items_give_a_row_of_zeros():
    labels = MixUp(CLASSES, p=0.0)(make(size=2, labels=torch.tensor([-100, 1])), generator()).labels
    assert labels.tolist() == [[0.0] * 5, [0.0, 1.0, 0.0, 0.0, 0.0]]


def test_padding_is_never_mixed_into_an_item():
    batch = make(mask=torch.arange(8) < 6)
    batch.inputs[6:] = float("nan")
    for seed in range(10):
        mixed = MixUp(CLASSES, alpha=1.0)(batch, generator(seed))
        assert mixed.inputs[:6].isfinite().all()
        assert torch.equal(mixed.mask, batch.mask)


def test_probabilities_can_be_mixed_again():
    once = MixUp(CLASSES)(make(), generator(0))
    twice = CutMix(CLASSES)(once, generator(1))
    torch.testing.assert_close(twice.labels.sum(dim=1), torch.ones(8))


def test_without_labels_inputs_are_mixed_alone():
    mixed = MixUp(CLASSES, alpha=1.0)(Batch(torch.rand(4, 3)), generator())
    assert mixed.labels is None
    assert mixed.inputs.shape == (4, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_keep_their_dtype(dtype):
    batch = make()
    batch.inputs = batch.inputs.to(dtype)
    assert MixUp(CLASSES)(batch, generator()).inputs.dtype == dtype


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("inputs", [{"pixels": torch.rand(2, 3)}, torch.zeros(2, 3, dtype=torch.uint8)])
def test_inputs_that_cannot_be_mixed_are_described(kind, inputs):
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__.lower()}.*(dict with keys|uint8)"):
        kind(CLASSES)(Batch(inputs), generator())


@pytest.mark.parametrize("labels", [torch.rand(4, 3), torch.zeros(4, 2, dtype=torch.long), torch.rand(4)])
def test_labels_of_another_kind_are_described(labels):
    with pytest.raises(ConfigurationError, match=r"class ids \(B,\) or probabilities \(B, 5\), got a tensor"):
        MixUp(CLASSES)(make(size=4, labels=labels), generator())


def test_cutmix_needs_images():
    with pytest.raises(ConfigurationError, match="cutmix needs images"):
        CutMix(CLASSES)(Batch(torch.rand(4, 3)), generator())


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"p": 1.5}, {"p": -0.1}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="expected"):
        MixUp(CLASSES, **arguments)


@pytest.mark.parametrize("alpha", [1e-4, 0.2, 1.0, 5.0])
def test_beta_has_the_moments_of_the_distribution(alpha):
    source = generator()
    draws = torch.tensor([beta(alpha, source) for _ in range(4000)], dtype=torch.float64)
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
