"""Transforms of one input."""

import pytest
import torch
from PIL import Image

from kdengine.api import ConfigurationError
from kdengine.data import transforms as t


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("P", 3), ("1", 3)])
def test_to_tensor_reads_every_common_mode(mode, channels):
    pixels = t.ToTensor()(Image.new(mode, (7, 5), 1))
    assert (pixels.shape, pixels.dtype) == ((channels, 5, 7), torch.float32)
    assert 0.0 <= pixels.min() <= pixels.max() <= 1.0


def test_to_tensor_is_torchvisions():
    from torchvision.transforms import functional

    torch.manual_seed(0)
    image = functional.to_pil_image(torch.rand(3, 5, 7))
    assert torch.equal(t.to_tensor(image), functional.to_tensor(image))


def test_to_tensor_leaves_a_tensor_alone():
    pixels = torch.rand(1, 2, 2)
    assert t.ToTensor()(pixels) is pixels


def test_normalize_is_per_channel_and_takes_images():
    pixels = torch.rand(2, 3, 3)
    expected = torch.stack([(pixels[0] - 0.5) / 0.1, (pixels[1] - 0.2) / 2.0])
    torch.testing.assert_close(t.Normalize([0.5, 0.2], [0.1, 2.0])(pixels), expected)
    torch.testing.assert_close(t.Normalize([0.5, 0.2], [0.1, 2.0])(pixels.expand(3, *pixels.shape))[2], expected)
    assert t.Normalize([0.5], [0.5])(Image.new("RGB", (2, 2), "white")).eq(1.0).all()
    assert t.Normalize([0.5], [0.5])(pixels.double()).dtype == torch.float64


@pytest.mark.parametrize(("mean", "std"), [([], []), ([0.1], [0.1, 0.2]), ([0.1], [0.0])])
def test_normalize_refuses_what_is_no_mean_and_std(mean, std):
    with pytest.raises(ConfigurationError, match="normalize expects"):
        t.Normalize(mean, std)


def test_normalize_names_an_image_with_other_channels():
    with pytest.raises(ConfigurationError, match=r"2 channels.*\(3, 4, 4\)"):
        t.Normalize([0.1, 0.2], [1.0, 1.0])(torch.rand(3, 4, 4))


RANDOM = {
    "random_crop": lambda: t.random_crop(8, padding=2, mode="reflect"),
    "random_resized_crop": lambda: t.random_resized_crop([8, 8]),
    "random_horizontal_flip": lambda: t.random_horizontal_flip(),
    "random_rotation": lambda: t.random_rotation(45),
    "random_erasing": lambda: t.random_erasing(p=1.0),
    "color_jitter": lambda: t.color_jitter(brightness=0.5, hue=0.1),
    "auto_augment": lambda: t.auto_augment("cifar10"),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_randomness_comes_from_torchs_generator_alone(name, kind):
    if (name, kind) == ("random_erasing", "image"):
        pytest.skip("documented: works on tensors")
    torch.manual_seed(0)
    pixels = torch.rand(3, 8, 8)
    value = pixels if kind == "tensor" else Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    transform, seen = RANDOM[name](), []
    for _ in range(2):
        torch.manual_seed(1)
        seen.append(torch.stack([t.to_tensor(transform(value)) for _ in range(20)]))
    assert torch.equal(*seen)
    assert any(not torch.equal(seen[0][0], other) for other in seen[0]), "it drew nothing"
    assert seen[0].shape == (20, 3, 8, 8)


def test_resize_and_center_crop():
    pixels = torch.rand(3, 10, 20)
    assert t.resize(5)(pixels).shape == (3, 5, 10)
    assert t.resize([4, 6])(pixels).shape == (3, 4, 6)
    assert torch.equal(t.center_crop(4)(pixels), pixels[:, 3:7, 8:12])


def test_refused_arguments_name_the_transform():
    with pytest.raises(ConfigurationError, match="RandomHorizontalFlip"):
        t.random_horizontal_flip(p=2.0)
