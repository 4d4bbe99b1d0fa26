"""A dry run leaves the network as it found it, also where modules or weights are shared."""

import torch
from torch import nn

from crossdistill.models.dry_run import dry_run, slots


class Shared(nn.Module):
    """One module under two names, one parameter in two modules, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.second = nn.Sequential(self.first[0], nn.Conv2d(3, 3, 1))
        self.second[1].weight = self.first[0].weight

    def forward(self, images):
        return self.second(self.first(images)).mean((2, 3))


def test_a_dry_run_changes_no_tensor_and_no_sharing():
    net = Shared()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    shape = dry_run(net, lambda network, images: network(images).shape, (3, 8, 8), training=True)
    assert shape == (2, 3)
    after = net.state_dict()
    assert all(tensor.device.type == "cpu" for tensor in after.values())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert net.second[0] is net.first[0]
    assert net.second[1].weight is net.first[0].weight


def test_slots_name_every_place_of_a_tensor_once():
    assert list(slots(Shared())) == [
        "first.0.weight", "first.0.bias", "first.1.weight", "first.1.bias", "first.1.running_mean",
        "first.1.running_var", "first.1.num_batches_tracked", "second.1.weight", "second.1.bias",
    ]  # fmt: skip


def test_recurrent_layers_run_on_their_own_device():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, images):
            return self.rnn(images.flatten(2).transpose(1, 2))[0]

    def device_of(network, images):
        return network(images).device.type

    assert dry_run(Recurrent(), device_of, (3, 4, 4)) == "cpu"
    assert dry_run(nn.Conv2d(3, 4, 1), device_of, (3, 4, 4)) == "meta"
