"""Builtin data sets."""

import os
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kdengine.api import ConfigurationError
from kdengine.data.cifar import Cifar, cifar10, cifar100
from kdengine.data.dataset import InMemory
from kdengine.data.digits import digits
from kdengine.data.folder import image_folder
from kdengine.data.transforms import resize


@pytest.fixture(scope="module")
def train_and_test():
    return digits("train"), digits("test")


def test_digits_are_split_as_documented(train_and_test):
    train, test = train_and_test
    assert (len(train), len(test)) == (1257, 540)
    assert train.classes == test.classes == list("0123456789")
    image, label = train[3]
    assert (image.shape, image.dtype, label) == ((1, 8, 8), torch.float32, train.targets[3])
    assert 0.0 <= train.tensors[0].min() < train.tensors[0].max() == 1.0


def test_digits_are_all_there_once(train_and_test):
    from sklearn.datasets import load_digits

    rows = torch.cat([data.tensors[0].flatten(1) for data in train_and_test]).mul(16).tolist()
    assert sorted(rows) == sorted(load_digits().data.tolist())


def test_digits_are_stratified(train_and_test):
    shares = [{label: n / len(data) for label, n in Counter(data.targets).items()} for data in train_and_test]
    for label in range(10):
        assert shares[0][label] == pytest.approx(shares[1][label], abs=0.002)


def test_digits_are_the_same_whatever_the_seed(train_and_test):
    torch.manual_seed(99)
    np.random.seed(99)
    train, test = train_and_test
    assert digits("test").fingerprint() == test.fingerprint() != train.fingerprint()
    assert digits("test", test_share=0.2).fingerprint() != test.fingerprint()


def test_tensors_are_what_single_samples_are(train_and_test):
    inputs, labels = train_and_test[1].tensors
    assert all(torch.equal(inputs[i], train_and_test[1][i][0]) for i in range(50))
    assert labels.tolist() == train_and_test[1].targets


def test_a_transform_can_be_set_at_any_time():
    data = digits("test")
    assert data.transform is None
    assert data.random is False
    data.transform = torch.neg
    assert torch.equal(data[0][0], -data.tensors[0][0])


def test_fingerprint_sees_labels_and_order():
    inputs, labels = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1])
    prints = {
        InMemory(inputs, labels, ["a", "b"]).fingerprint(),
        InMemory(inputs.flip(0), labels, ["a", "b"]).fingerprint(),
        InMemory(inputs, labels.flip(0), ["a", "b"]).fingerprint(),
        InMemory(inputs, labels, ["a", "c"]).fingerprint(),
    }
    assert len(prints) == 4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_digits_refuse_an_empty_split(share):
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        digits("train", test_share=share)


@pytest.mark.parametrize("factory", [digits, cifar10, lambda split: image_folder(split, ".")])
def test_an_unknown_split_gets_the_nearest(factory):
    with pytest.raises(ConfigurationError, match=r"did you mean 'train'\?"):
        factory("trian")


def test_cifar_images_are_channels_first_from_0_to_1():
    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    data = Cifar(SimpleNamespace(data=pixels, classes=["a", "b"], targets=[1, 0]), [["batch", "md5"]])
    image, label = data[1]
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.float32, 0)
    np.testing.assert_allclose(image.numpy(), pixels[1].transpose(2, 0, 1) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "name"), [(cifar10, "cifar-10-python.tar.gz"), (cifar100, "cifar-100-python.tar.gz")]
)
def test_missing_cifar_says_what_to_fetch_and_where_to_put_it(factory, name, tmp_path):
    with pytest.raises(ConfigurationError, match="download = true") as caught:
        factory("test", root=tmp_path, download=False)
    assert name in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_cifar_download_that_fails_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("where the folder should go")  # fails before any network is asked
    with pytest.raises(ConfigurationError, match=r"download failed.*without a network"):
        cifar10("test", root=tmp_path / "file", download=True)


def paint(folder, classes=("cat", "dog"), count=2, mode="RGB"):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (6 + i, 5), number * 100).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    paint(tmp_path / "train", count=3)
    paint(tmp_path / "test")
    return tmp_path


def test_image_folder_reads_both_splits(images):
    train, test = image_folder("train", images), image_folder("test", images)
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == test.classes == ["cat", "dog"]
    assert test.targets == [0, 0, 1, 1]
    pixels, label = test[3]
    assert (pixels.shape, pixels.dtype, label) == ((3, 5, 7), torch.float32, 1)
    assert pixels[0].eq(100 / 255).all()


def test_image_folder_transforms_a_pil_image(images):
    data, seen = image_folder("test", images), []
    data.transform = lambda image: seen.append(image) or resize([4, 4])(image)
    assert data[0][0].shape == (3, 4, 4)
    assert isinstance(seen[0], Image.Image)
    assert seen[0].mode == "RGB"


def test_image_folder_converts_to_rgb_and_takes_val(tmp_path):
    paint(tmp_path / "train")
    paint(tmp_path / "val", mode="L")
    assert image_folder("test", tmp_path)[2][0].shape == (3, 5, 6)


def test_image_folder_fingerprint_follows_the_files(images):
    before = image_folder("test", images).fingerprint()
    assert image_folder("test", images).fingerprint() == before != image_folder("train", images).fingerprint()
    os.utime(images / "test" / "cat" / "0.png", (1, 1))
    touched = image_folder("test", images).fingerprint()
    (images / "test" / "cat" / "0.png").rename(images / "test" / "cat" / "00.png")
    assert len({before, touched, image_folder("test", images).fingerprint()}) == 3


def test_image_folder_fingerprint_does_not_depend_on_the_place(images, tmp_path):
    before = image_folder("test", images).fingerprint()
    shutil.copytree(images / "test", tmp_path / "moved" / "test")  # keeps times
    shutil.copytree(images / "train", tmp_path / "moved" / "train")
    assert image_folder("test", tmp_path / "moved").fingerprint() == before


def test_missing_and_empty_folders_are_named(images, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no folder train in .*nowhere, which does not exist"):
        image_folder("train", tmp_path / "nowhere")
    shutil.rmtree(images / "test")
    with pytest.raises(ConfigurationError, match=r"no folder test or val in .*\['train'\]"):
        image_folder("test", images)
    (images / "test").mkdir()
    with pytest.raises(ConfigurationError, match=r"no images to read in .*test"):
        image_folder("test", images)
    (images / "test" / "cat").mkdir()
    with pytest.raises(ConfigurationError, match=r"no images to read in .*cat"):
        image_folder("test", images)


def test_classes_must_be_the_same_in_both_splits(images):
    (images / "test" / "dog").rename(images / "test" / "wolf")
    with pytest.raises(ConfigurationError, match=r"missing in test: \['dog'\], only in test: \['wolf'\]"):
        image_folder("test", images)
