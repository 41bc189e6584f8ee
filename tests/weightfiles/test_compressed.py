"""The compressed form gives back every bit, and only what was written."""

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from lightning_signin import sparsify
from lightning_signin.export import export, load_compressed, save_compressed
from lightning_signin.weightfiles.files.compressed import DIGEST, KEY, _digest, pack
from lightning_signin.weightfiles.files.safe import read_safetensors
from lightning_signin.weightfiles.files.zstd import compress
from lightning_signin.weightfiles.saved import read_weights
from tests.compat.network_rows import Tied
from tests.compat.rows import Row, Watch, run, sparse
from tests.compat.task import Task
from tests.small import differing

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [torch.complex64, torch.complex128, torch.int64, torch.int16, torch.uint8, torch.uint16, torch.bool]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert list(found) == list(expected)
    return all(
        (found[n].dtype, found[n].shape) == (t.dtype, t.shape) and torch.equal(bits(found[n]), bits(t))
        for n, t in expected.items()
    )


def some(size: int, zeros: float) -> Tensor:
    values = torch.randn(size)
    return values * (torch.rand(size) >= zeros)


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_every_dtype_shape_and_density_comes_back_bit_for_bit(tmp_path, dtype, zstd):
    values = some(3 * 5 * 7, 0.9)
    state = {
        "sparse": values.to(dtype).reshape(3, 5, 7),
        "dense": some(30, 0.0).to(dtype),
        "zeros": torch.zeros(9, 9, dtype=dtype),
        "scalar": values.to(dtype)[0],
        "empty": torch.empty(0, 4, dtype=dtype),
        "transposed": values.to(dtype).reshape(15, 7).T,
        "slice": values.to(dtype)[10:60],
    }
    assert same(load_compressed(save_compressed(state, tmp_path / "x", zstd)), state)


@pytest.mark.parametrize("dtype", FLOATS[:4], ids=str)
def test_negative_zeros_and_payloads_of_nans_survive(tmp_path, dtype):
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    tensor = torch.zeros(1000, dtype=dtype)
    tensor[:4] = torch.tensor([-0.0, float("inf"), float("-inf"), float("nan")], dtype=dtype)
    tensor.view(integer)[4] = tensor.view(integer)[3] + 1  # another NaN
    tensor.view(integer)[5] = 1  # the smallest subnormal
    found = load_compressed(save_compressed({"x": tensor}, tmp_path / "x"))["x"]
    assert torch.equal(found.view(integer), tensor.view(integer))
    assert (tmp_path / "x").stat().st_size < tensor.nbytes + 500


def test_bitmask_of_a_tensor_is_a_bit_an_entry_lowest_first(tmp_path):
    tensor = torch.zeros(4, 10)
    tensor[0, 3], tensor[1, 0] = 7.0, -2.0
    entries = load(save_compressed({"fc.weight": tensor, "n": torch.tensor(3)}, tmp_path / "x").read_bytes())
    assert sorted(entries) == ["fc.weight.bitmask", "fc.weight.values", "n"]
    assert entries["fc.weight.bitmask"].tolist() == [8, 4, 0, 0, 0]
    assert entries["fc.weight.values"].tolist() == [7.0, -2.0]


def test_tensor_that_would_not_get_smaller_stays_dense(tmp_path):
    state = {"full": torch.ones(8, 8), "half": torch.ones(64) * (torch.arange(64) < 62)}
    path = save_compressed(state, tmp_path / "x")
    assert sorted(load(path.read_bytes())) == ["full", "half"]
    assert same(load_compressed(path), state)


def test_names_of_the_format_in_a_state_dict_are_no_trouble(tmp_path):
    state = {"a": some(99, 0.9), "a.bitmask": some(99, 0.9), "b": some(99, 0.9), "b.values": torch.arange(3)}
    assert same(load_compressed(save_compressed(state, tmp_path / "x")), state)


def test_tied_tensors_are_stored_once_and_come_back_as_one(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "c": nn.Linear(64, 64)})
    net["b"].weight = net["a"].weight
    for module in (net, sparsify(net, sparsity=0.9)):
        path = save_compressed(module, tmp_path / "x")
        state = load_compressed(path)
        assert same(state, dict(module.state_dict()))
        assert state["a.weight"] is state["b.weight"]
        assert not any(name.startswith("b.weight") for name in load(path.read_bytes()))
    equal = {"a": torch.ones(64), "b": torch.ones(64)}
    state = load_compressed(save_compressed(equal, tmp_path / "x"))
    assert state["a"] is not state["b"]


def test_views_of_one_memory_that_differ_are_not_tied(tmp_path):
    whole = some(100, 0.0)
    state = {"whole": whole, "flat": whole.view(10, 10), "turned": whole.view(10, 10).T, "part": whole[:50]}
    assert same(load_compressed(save_compressed(state, tmp_path / "x")), state)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"step": 3}, "head._extra_state is a dict, but only tensors can be written"),
        (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dtype torch.qint8"),
        (torch.empty(2, device="meta"), "on meta, which cannot be written. Make it a dense tensor first"),
    ],
    ids=["extra state", "sparse", "quantized", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_entry_that_is_no_plain_tensor_is_named(tmp_path, value, text):
    with pytest.raises(ValueError, match=rf"^head\._extra_state .*{text.removeprefix('head._extra_state ')}"):
        save_compressed({"weight": torch.ones(2), "head._extra_state": value}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def outcome(data: bytes, state: dict[str, Tensor], path) -> str:
    path.write_bytes(data)
    try:
        found = load_compressed(path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else str(error)
    return "whole" if same(found, state) else "wrong"


@pytest.mark.parametrize("zstd", [False, True])
def test_cut_and_altered_files_are_refused(tmp_path, zstd):
    state = {"a": some(400, 0.9).reshape(20, 20), "b": some(10, 0.0), "c": torch.arange(4)}
    data = save_compressed(state, tmp_path / "x", zstd).read_bytes()
    for length in [*range(20), *range(20, len(data), 37), len(data) - 1]:
        assert outcome(data[:length], state, tmp_path / "cut") == "refused", length
    flips = {}
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        flips.setdefault(outcome(bytes(changed), state, tmp_path / "flipped"), []).append(place)
    assert set(flips) <= {"refused", "whole"}, {kind: places[:5] for kind, places in flips.items()}
    # Whole are only padding and what a Zstandard frame says of itself.
    assert len(flips.get("whole", [])) < 20


def test_metadata_is_covered_by_the_digest(tmp_path):
    data = pack({"a": some(400, 0.9)}, {"note": "one"})
    entries, metadata = read_safetensors(data, "x")
    for changed in ({"note": "two"}, {"more": "x"}, {DIGEST: "0" * 64}, {KEY: "not JSON"}):
        (tmp_path / "x").write_bytes(save(entries, metadata | changed))
        with pytest.raises(ValueError, match=r"x was altered: it does not match its digest\. Write or copy it again"):
            load_compressed(tmp_path / "x")


def test_later_version_is_named(tmp_path):
    entries, metadata = read_safetensors(pack({"a": some(400, 0.9)}, {}), "x")
    (tmp_path / "x").write_bytes(save(entries, metadata | {KEY: json.dumps({"version": 2})}))
    with pytest.raises(ValueError, match="x has version 2 of the compressed form, but this lightning-signin reads"):
        load_compressed(tmp_path / "x")


@pytest.mark.parametrize(
    "layout",
    [
        {"tensors": {"a": {"dtype": "float32", "shape": [10**12]}}, "same": {}},
        {"tensors": {"a": {"dtype": "load", "shape": [400]}}, "same": {}},
        {"tensors": {"b": {"dtype": "float32", "shape": [400]}}, "same": {}},
        {"tensors": {"b": {"dtype": "float32", "shape": [400]}}, "same": {"b": "a"}},
        {"tensors": [], "same": {}},
        {"tensors": {"a": {"dtype": "float64", "shape": [400]}}, "same": {}},
        {"tensors": {"a": {"dtype": "int32", "shape": [400]}}, "same": {}},
        {"tensors": {"a": {"dtype": "float32", "shape": [-400]}}, "same": {}},
        {"tensors": {"a": {"dtype": "float32", "shape": [400]}}, "same": {"a": "a"}},
        {},
    ],
    ids=["large", "no dtype", "missing", "tied to nothing", "list", "wide", "ints", "negative", "to itself", "empty"],
)
def test_forged_layout_with_a_right_digest_is_refused(tmp_path, layout):
    entries, metadata = read_safetensors(pack({"a": some(400, 0.9)}, {}), "x")
    metadata = metadata | {KEY: json.dumps({"version": 1, **layout})}
    (tmp_path / "x").write_bytes(save(entries, metadata | {DIGEST: _digest(entries, metadata)}))
    with pytest.raises(ValueError, match="matches its digest, but does not have the expected structure"):
        load_compressed(tmp_path / "x")


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_foreign_files_are_refused_and_execute_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(2)}, "plain")
    torch.save({"a": torch.ones(2)}, "torch")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "zipped").write_bytes(compress(pickle.dumps(Evil())))
    (tmp_path / "onnx").write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x06" + bytes(60))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "bomb").write_bytes(b"\x28\xb5\x2f\xfd\xe0" + (2**50).to_bytes(8, "little") + bytes(20))
    texts = {"plain": r"Read it with safetensors\.torch\.load_file", "bomb": f"claims to hold {2**50} bytes"}
    for name in ("plain", "torch", "pickle", "zipped", "onnx", "empty", "bomb"):
        with pytest.raises(
            ValueError, match=f"^{name} .*{texts.get(name, 'is neither a safetensors file nor one that')}"
        ):
            load_compressed(name)
    with pytest.raises(FileNotFoundError, match="There is no file missing"):
        load_compressed("missing")
    assert not (tmp_path / "executed").exists()


def test_read_weights_reads_compressed_files_with_masks_and_flips(tmp_path):
    net = sparsify(nn.Linear(40, 40), sparsity=0.9)
    for zstd in (False, True):
        found = read_weights(save_compressed(net, tmp_path / "x", zstd))
        assert same(found.tensors, dict(net.state_dict()))
        assert found.kept == {"weight": 160}


def test_zstd_missing_is_said_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compression", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-signin\[zstd\]'"):
        save_compressed({"a": torch.ones(2)}, tmp_path / "x", zstd=True)


def test_uniform_weights_that_no_reader_would_trust_are_not_written(monkeypatch):
    monkeypatch.setattr("lightning_signin.weightfiles.files.zstd._ALWAYS", 1000)
    with pytest.raises(ValueError, match=r"almost all equal: .* Write them with zstd=False"):
        compress(bytes(10**7))


def test_tied_sparse_weight_of_a_checkpoint_from_within_a_run_is_stored_once(tmp_path):
    watch, row = Watch(tmp_path), Row("tied", lambda: Task(Tied))
    run(row, tmp_path, sparse(row), watch)
    export(tmp_path / "midFalse.ckpt", tmp_path / "net", "compressed")
    state = load_compressed(tmp_path / "net")
    assert state["net.again.weight"] is state["net.first.weight"]
    assert differing(dict(state), torch.load(tmp_path / "midFalse.ckpt", weights_only=True)["state_dict"]) == []
    assert (tmp_path / "net").read_bytes().count(b"net.again.weight.bitmask") == 0
