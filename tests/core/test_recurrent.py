"""Recurrent layers, which keep second references to their weights."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_signin import TrainingData, masks, merge_, plain_view, rescale_, sparsify
from lightning_signin.metrics import sharpness
from tests.small import copies, differing


class OwnLSTM(nn.LSTM):
    """A subclass with a forward of its own, which tidies up first, as many do."""

    def forward(self, x: Tensor) -> Tensor:
        self.flatten_parameters()
        return super().forward(x)[0]


LAYERS = {
    "LSTM": lambda: nn.LSTM(6, 5, 2, batch_first=True),
    "LSTM with projections": lambda: nn.LSTM(6, 5, 2, proj_size=3, batch_first=True),
    "GRU of two directions": lambda: nn.GRU(6, 5, bidirectional=True, batch_first=True, dtype=torch.float64),
    "RNN without biases": lambda: nn.RNN(6, 5, bias=False, batch_first=True),
    "subclass": lambda: OwnLSTM(6, 5, batch_first=True),
}


@pytest.fixture(params=LAYERS)
def pair(request) -> tuple[nn.Module, nn.Module]:
    """A plain layer with zeros and its sparse twin."""
    plain = LAYERS[request.param]()
    sparse = sparsify(copy.deepcopy(plain), sparsity=0.6)
    plain.load_state_dict(sparse.state_dict())
    return plain, sparse


def batch(layer: nn.Module) -> Tensor:
    return torch.randn(4, 7, 6, dtype=next(layer.parameters()).dtype)


def output(layer: nn.Module, x: Tensor) -> Tensor:
    found = layer(x)
    return found[0] if isinstance(found, tuple) else found


def test_outputs_are_those_of_the_masked_weights(pair):
    plain, sparse = pair
    x = batch(plain)
    assert torch.equal(output(sparse, x), output(plain, x))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(output(sparse, x), output(plain, x))
    assert torch.equal(output(sparse.eval(), x), output(plain.eval(), x))


def test_training_equals_masking_by_hand(pair):
    """With "plain", SGD with momentum on the mask is SGD with a mask multiplied to every gradient."""
    plain, sparse = pair
    merge_(sparse)
    sparsify(sparse, mask={n: p != 0 for n, p in plain.named_parameters() if "weight" in n}, parametrization="plain")
    kept = masks(sparse)
    with plain_view(sparse):
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (plain, sparse)]
    for x in [batch(plain) for _ in range(5)]:
        for net, optimizer in zip((plain, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            output(net, x).square().mean().backward()
            if net is plain:
                for name, parameter in net.named_parameters():
                    parameter.grad *= kept.get(name, 1)
            optimizer.step()
    assert differing(copies(plain), copies(sparse)) == []


def test_layer_is_whole_again_after_the_merge(pair):
    plain, sparse = pair
    x = batch(plain)
    before = output(sparse, x)
    merge_(rescale_(sparse))
    assert type(sparse) is type(plain)
    assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(
        listed is getattr(sparse, name)
        for listed, name in zip(sparse._flat_weights, sparse._flat_weights_names, strict=True)
    )
    assert torch.allclose(output(sparse, x), before)
    output(sparse, x).sum().backward()
    assert all(parameter.grad is not None for parameter in sparse.parameters())
    assert torch.equal(output(copy.deepcopy(sparse), x), output(sparse, x))


def test_sparse_layer_can_be_copied_and_moved_after_a_forward(pair):
    plain, sparse = pair
    x = batch(plain)
    output(sparse, x).sum().backward()
    twin = copy.deepcopy(sparse)
    assert torch.equal(output(twin, x), output(sparse, x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(output(sparse, x), output(plain, x))
    assert not output(twin, x).any()
    assert output(sparse.half().float().to(x.dtype), x).shape == output(plain, x).shape


def test_nothing_holds_on_to_the_weights_of_a_forward(pair):
    sparse = pair[1]
    output(sparse, batch(sparse))
    assert not [
        name for name, value in vars(sparse).items() if isinstance(value, list) and any(map(torch.is_tensor, value))
    ]
    assert all(torch.is_tensor(value) for value in sparse._flat_weights)


def test_each_weight_is_made_once_in_a_forward():
    sparse, made = sparsify(nn.LSTM(6, 5, 2), sparsity=0.6), []
    for holder in sparse.parametrizations.values():
        holder[0].register_forward_hook(lambda *_: made.append(1))
    sparse(torch.randn(3, 6))
    assert len(made) == 4


def test_packed_sequences():
    plain = nn.GRU(6, 5)
    sparse = sparsify(copy.deepcopy(plain), sparsity=0.6)
    plain.load_state_dict(sparse.state_dict())
    packed = pack_padded_sequence(torch.randn(7, 3, 6), torch.tensor([7, 5, 2]))
    assert torch.equal(sparse(packed)[0].data, plain(packed)[0].data)


def test_one_weight_of_several():
    plain = nn.LSTM(6, 5, 2)
    sparse = sparsify(copy.deepcopy(plain), sparsity=0.6, include=["weight_hh_*"])
    assert list(masks(sparse)) == ["weight_hh_l0", "weight_hh_l1"]
    plain.load_state_dict(sparse.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(sparse(x)[0], plain(x)[0])
    with plain_view(sparse):
        assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in plain.named_parameters()]
        assert torch.equal(sparse(x)[0], plain(x)[0])


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.read, self.head = kind(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x)[0][:, -1])


@pytest.mark.parametrize("mask", ["snip", "magnitude", "synflow", "iterative-snip"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_scores_see_recurrent_weights(mask, kind):
    data = TrainingData(lambda net, x: net(x).square().mean(), [torch.randn(8, 7, 6)])
    net = sparsify(Reader(kind), sparsity=0.5, mask=mask, data=data)
    assert set(masks(net)) == {"read.weight_ih_l0", "read.weight_hh_l0", "head.weight"}


def test_sharpness_of_a_sparse_recurrent_network_is_that_of_the_plain_one():
    net = sparsify(Reader(nn.GRU).double(), sparsity=0.0)
    plain = Reader(nn.GRU).double()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(8, 7, 6).double()
    found = [float(sharpness(one, lambda net, x: (net(x) - 1).square().mean(), [x])) for one in (net, plain)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
