"""Settings of a federation: words for small networks, what is chosen, and what is refused before anything runs."""

import pytest

from crossdistill.errors import InputError
from crossdistill.federated.settings import FederateSettings, load_settings

TREE = {"data": {"source": "digits"}}


def test_words_stand_for_small_networks_and_are_dealt_in_turn():
    settings = load_settings({**TREE, "models": ["cnn", "timm/resnet18", {"name": "mlp", "args": {"num_blocks": 2}}]})
    names = [settings.model_for(client).name for client in range(4)]
    assert names == ["timm/resnet10t", "timm/resnet18", "timm/resmlp_tiny", "timm/resnet10t"]
    assert settings.models[2].args["num_blocks"] == 2
    assert settings.models[2].args["embed_dim"] == 64
    assert len(load_settings(TREE).models) == 3


def test_the_method_takes_the_temperature_of_the_knowledge():
    assert load_settings(TREE, ["fusion.temperature=2"]).method.options["temperature"] == 2.0
    with pytest.raises(InputError, match="one temperature"):
        load_settings(TREE, ["fusion.temperature=2", "method.temperature=5"])


def test_settings_survive_the_network():
    settings = load_settings(TREE, ["method.name=ofa", "partition.alpha=0.1", "fusion.guard=true"])
    again = FederateSettings.model_validate_json(settings.model_dump_json())
    assert again == settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fusion.betta=1", "beta"),
        ("method.name=fbt", "nothing but predictions"),
        ("method.name=none", "nothing but predictions"),
        ("train.ema_decay=0.9", "ema_decay"),
        ("train.select=best", "select"),
        ("tune.cross_entropy_weight=1", "cross_entropy_weight"),
        ("data.limit_train=10", "partition.samples"),
        ("data.labels_per_class=10", "labels_per_class"),
        ("data.augment.mixup=0.2", "mixup"),
        ("clients=1", "clients"),
        ("train.optimizer=sgd train.momentum=0", "Nesterov"),
        ("privacy.noise_multiplier=0", "bounds nothing"),
        ("privacy.epsilon=8 strategy=epd_true", "past the noise"),
        ("privacy.epsilon=8 data.sampling=class_balanced", "sampling"),
        ("partition.alpha=0", "alpha"),
        ("transfer.share=1", "share"),
        ("models=[]", "models"),
    ],
)
def test_what_would_go_unheard_is_refused(override, words):
    with pytest.raises(InputError, match=words):
        load_settings({**TREE, "models": ["cnn"]} if override != "models=[]" else TREE, override.split())


def test_a_budget_is_given_in_one_way():
    with pytest.raises(InputError, match="one of them"):
        load_settings(TREE, ["privacy.epsilon=8", "privacy.noise_multiplier=1"])
