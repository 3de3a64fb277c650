import errno
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdengine.engine.tensors import load_tensors, save_tensors

resource = pytest.importorskip("resource")

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


def bits(tensor):
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.numel() == 0:
        return torch.empty(0, dtype=torch.uint8)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # one item may have any stride


def same(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.stride() == right.stride()
        and torch.equal(bits(left), bits(right))
    )


def round_trip(path, **tensors):
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(loaded[name], tensor), name
    return loaded


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def rewrite_layout(path, change):
    """Give a file other metadata, as a hostile hand would."""
    with safe_open(path, "pt") as file:
        layout = json.loads(file.metadata()["kdengine.layout"])
    change(layout)
    save_file(load_file(path), path, metadata={"kdengine.layout": json.dumps(layout)})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 4)], ids=str)
def test_every_dtype_and_shape_comes_back_to_the_bit(path, dtype, shape):
    size = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8)
    tensor = data.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    round_trip(path, t=tensor, other=torch.ones(1))


def test_nan_payloads_and_signed_zeros_are_kept(path):
    round_trip(path, t=torch.tensor([0x7FC00001, -0x80000000, -1], dtype=torch.int32).view(torch.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.t(),
        lambda t: t[2:],
        lambda t: t[:1].expand(5, 6),
        lambda t: t[0, 0].expand(3),
        lambda t: t[:, ::2].unsqueeze(0).expand(2, 5, 3),
        lambda t: t.flatten().unfold(0, 4, 1),
        lambda t: t.as_strided((2, 1), (1, 7)),
        lambda t: t.t()[:, :0],
    ],
    ids=["transposed", "tail", "expanded", "scalar", "both", "windows", "odd unit", "empty"],
)
def test_strides_are_restored(path, make):
    round_trip(path, t=make(torch.arange(30.0).reshape(5, 6)))


@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (lambda t: t[:, 1], (1,)),
        (lambda t: t[1:3, ::2], (3, 1)),
        (lambda t: t.t()[::2, 1:3], (1, 3)),
        (lambda t: t.t()[None, ::2, 1:3], (3, 1, 3)),
        (lambda t: t.as_strided((2, 1, 2), (1, 9, 7)), (1, 4, 2)),
    ],
    ids=["column", "steps", "transposed steps", "batch of one", "odd unit"],
)
def test_gaps_are_left_out_and_the_order_of_the_dimensions_is_kept(path, make, strides):
    tensor = make(torch.arange(30.0).reshape(5, 6))
    save_tensors(path, {"t": tensor})
    loaded = load_tensors(path)["t"]
    assert torch.equal(loaded, tensor)
    assert loaded.stride() == strides
    assert loaded.untyped_storage().nbytes() == 4 * tensor.numel()


def test_the_gaps_that_the_first_version_stored_are_left_out(path):
    values = torch.arange(6.0).reshape(2, 3)
    layout = {"version": 1, "strides": {"t": [1, 2**50]}, "views": {}}
    save_file({"t": values}, path, metadata={"kdengine.layout": json.dumps(layout)})
    loaded = load_tensors(path)["t"]
    assert torch.equal(loaded, values)
    assert loaded.stride() == (1, 2)


def test_views_out_of_all_proportion_are_refused_both_ways(path):
    with pytest.raises(TypeError, match="out of all proportion; store its contiguous"):
        save_tensors(path, {"mask": torch.zeros(1).expand(2**25)})
    tie = torch.zeros(2**20)
    with pytest.raises(ValueError, match="out of all proportion"):
        save_tensors(path, {f"w{index}": tie[:] for index in range(300)})
    save_tensors(path, {f"w{index}": tie[:] for index in range(200)})
    assert len(load_tensors(path)) == 200


def test_channels_last_is_restored_and_any_reader_sees_the_logical_tensor(path):
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert round_trip(path, conv=weight)["conv"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(load_file(path)["conv"], weight)


def test_conjugate_and_negative_views_come_back_as_values(path):
    z = torch.tensor([1 + 2j, 3 - 1j])
    save_tensors(path, {"conj": z.conj(), "neg": z.conj().imag})
    loaded = load_tensors(path)
    assert torch.equal(loaded["conj"], z.conj())
    assert torch.equal(loaded["neg"], torch.tensor([-2.0, 1.0]))


def test_tied_weights_are_written_once_and_stay_tied(path):
    weight = torch.nn.Parameter(torch.randn(1000, 10))
    loaded = round_trip(path, embed=weight, head=weight.detach(), transposed=weight.t())
    assert path.stat().st_size < 1.1 * weight.numel() * 4
    loaded["embed"][3, 4] = 42.0
    assert loaded["head"][3, 4] == loaded["transposed"][4, 3] == 42.0
    assert not loaded["embed"].requires_grad
    assert list(load_file(path)) == ["embed"]


def test_tied_channels_last_weights_stay_tied(path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    loaded = round_trip(path, a=weight, b=weight[1:])
    loaded["a"][1, 0, 0, 0] = 42.0
    assert loaded["b"][0, 0, 0, 0] == 42.0


def test_views_without_a_whole_one_share_their_region(path):
    base = torch.arange(100_000.0)
    loaded = round_trip(path, left=base[10:60], right=base[40:90], inside=base[50:60:3])
    assert path.stat().st_size < 2000
    loaded["left"][45] = -1.0
    assert loaded["right"][15] == -1.0
    assert storage(loaded["left"]) == storage(loaded["right"]) == storage(loaded["inside"])


def test_apart_in_one_storage_are_stored_apart(path):
    base = torch.arange(100_000.0)
    loaded = round_trip(path, a=base[:3], b=base[50_000:50_003])
    assert path.stat().st_size < 2000
    assert storage(loaded["a"]) != storage(loaded["b"])


def test_views_of_one_storage_in_several_dtypes(path):
    octets = torch.arange(64, dtype=torch.uint8)
    loaded = round_trip(
        path, odd=octets[3:33], words=octets[8:24].view(torch.float32), z=octets[16:48].view(torch.complex128)
    )
    loaded["odd"][5] = 255
    assert loaded["words"].view(torch.uint8)[0] == 255


def test_a_column_does_not_bring_its_matrix(path):
    save_tensors(path, {"column": torch.zeros(1000, 1000)[:, 0]})
    assert path.stat().st_size < 5000


def test_loaded_tensors_do_not_point_into_the_file(path):
    loaded = round_trip(path, a=torch.ones(1000), b=torch.ones(3))
    assert loaded["b"].untyped_storage().nbytes() == 12
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded["a"], torch.ones(1000))


def test_nothing_at_all_comes_back(path):
    save_tensors(path, {})
    assert load_tensors(path) == {}


def test_a_stranger_s_file_is_read(path):
    save_file({"w": torch.ones(2)}, path)
    assert torch.equal(load_tensors(path)["w"], torch.ones(2))


def test_the_same_tensors_make_the_same_file(tmp_path):
    base = torch.arange(10.0)
    for name in "ab":
        save_tensors(tmp_path / name, {"y": base[1:], "x": base.clone(), "z": base[:5]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@st.composite
def views(draw):
    """A few views, of any strides and places, of one storage."""
    base = torch.arange(60, dtype=torch.int16)
    made = {}
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        strides = [draw(st.integers(0, 8)) for _ in shape]
        offset = draw(st.integers(0, 8))
        made[f"v{index}"] = base.as_strided(shape, strides, offset)
    return made


def as_before(loaded, tensor):
    """The same, but that a tensor which stands alone may have lost its gaps."""
    return loaded.shape == tensor.shape and torch.equal(loaded, tensor)


@settings(deadline=None, max_examples=100)
@given(views())
def test_any_views_come_back_and_share_as_before(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("views") / "t"
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    for name in tensors:
        assert as_before(loaded[name], tensors[name])
    # A change through one view is seen through the others in both worlds.
    first = next(iter(tensors))
    if tensors[first].numel():
        for world in (tensors, loaded):
            world[first][(0,) * world[first].ndim] = 99
    for name in tensors:
        assert as_before(loaded[name], tensors[name])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(1, device="meta"), "meta device holds no data"),
        (lambda: torch.eye(2).to_sparse(), "torch.sparse_coo tensor is not dense"),
        (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "scale"),
        (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "not dense"),
    ],
    ids=["meta", "sparse", "quantized", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_plain_memory_is_refused_by_name(path, make, said):
    with pytest.raises(TypeError, match=f"tensor 'w' cannot be stored: .*{said}"):
        save_tensors(path, {"w": make()})
    assert not path.exists()


@pytest.mark.parametrize("name", ["__metadata__", "a\nb", "\ud800"])
def test_names_that_a_file_cannot_hold_are_refused(path, name):
    with pytest.raises(ValueError, match="cannot name a stored tensor"):
        save_tensors(path, {name: torch.zeros(1)})


def test_odd_but_possible_names(path):
    round_trip(path, **{"": torch.ones(1), "größe/..": torch.ones(2), '"': torch.ones(3)})


def test_a_full_disk_is_an_os_error_with_the_path_and_leaves_the_old_file(path):
    save_tensors(path, {"w": torch.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=str(path)) as caught:
            save_tensors(path, {"w": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert load_tensors(path)["w"].numel() == 2
    assert list(path.parent.iterdir()) == [path]


def test_the_file_has_the_permissions_of_any_other(path):
    (path.parent / "usual").touch()
    save_tensors(path, {"w": torch.ones(2)})
    assert path.stat().st_mode == (path.parent / "usual").stat().st_mode


@pytest.mark.parametrize(
    "change",
    [
        lambda layout: layout["views"]["b"].update(offset=4000),
        lambda layout: layout["views"]["b"].update(offset=2),
        lambda layout: layout["views"]["b"].update(offset=-4),
        lambda layout: layout["views"]["b"].update(shape=[2**40]),
        lambda layout: layout["views"]["b"].update(shape=[2**62, 2**62], strides=[0, 0]),
        lambda layout: layout["views"]["b"].update(shape=[2**70], strides=[0]),
        lambda layout: layout["views"]["b"].update(shape=[True]),
        lambda layout: layout["views"]["b"].update(strides=[1, 1]),
        lambda layout: layout["views"]["b"].update(dtype="load"),
        lambda layout: layout["views"]["b"].update(dtype="qint8"),
        lambda layout: layout["views"]["b"].update(of="nobody"),
        lambda layout: layout["views"]["b"].update(of=["a"]),
        lambda layout: layout["views"]["b"].pop("of"),
        lambda layout: layout["views"].update(b=None),
        lambda layout: layout["strides"].update(a=[0]),
        lambda layout: layout["views"]["b"].update(shape=[2**30], strides=[0]),
        lambda layout: layout["views"]["b"].update(shape=[1] * 65, strides=[1] * 65),
        lambda layout: layout["strides"].update(a="x"),
        lambda layout: layout.update(version=2),
        lambda layout: layout.update(views=[]),
        lambda layout: layout.clear(),
    ],
)
def test_a_hostile_layout_is_a_value_error(path, change):
    base = torch.arange(10.0)
    save_tensors(path, {"a": base, "b": base[2:5]})
    rewrite_layout(path, change)
    with pytest.raises(ValueError, match=str(path)):
        load_tensors(path)


def test_a_layout_nested_too_deeply_is_a_value_error(path):
    save_file({"w": torch.ones(1)}, path, metadata={"kdengine.layout": "[" * 100_000})
    with pytest.raises(ValueError, match="nested too deeply"):
        load_tensors(path)


@pytest.mark.parametrize("size", [0, 4, 20, 200])
def test_a_truncated_file_is_a_value_error(path, size):
    save_tensors(path, {"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=str(path)):
        load_tensors(path)


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        load_tensors(path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_tensors_round_trip(path):
    weight = torch.randn(4, 5, device="cuda")
    save_tensors(path, {"a": weight, "b": weight.t()[1:]})
    loaded = load_tensors(path, device="cuda")
    assert loaded["a"].is_cuda
    assert same(loaded["a"].cpu(), weight.cpu())
    assert torch.equal(loaded["b"], weight.t()[1:])
    assert storage(loaded["a"]) == storage(loaded["b"])
