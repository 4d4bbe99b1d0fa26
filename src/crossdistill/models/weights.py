"""Putting saved weights into a network: the keys must match, and classes are matched by name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import InputError
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.cutter import classifier_names
from crossdistill.models.resample import resampled
from crossdistill.models.sizes import size_of
from crossdistill.models.views import Size

SHOWN_KEYS = 3
DEFAULT_CHANNELS = 3


def load(net: nn.Module, checkpoint: Checkpoint, *, name: str, class_names: Sequence[str] | None) -> None:
    """Load everything, classifier included; its rows are put in the order of ``class_names``.

    Position embeddings that were saved at another image size are resampled.

    Args:
        net: of the architecture and with the number of classes that the data have.
        checkpoint: where the weights are.
        name: the architecture, for messages.
        class_names: the data's classes in order; None takes the checkpoint's order.

    Raises:
        InputError: another architecture, a head of another size, or other classes.
    """
    tensors = checkpoint.tensors()
    heads = _head_tensors(net, tensors)
    _check_keys(net, tensors, checkpoint, name)
    wrong = [key for key in heads if tensors[key].shape[:1] != net.state_dict()[key].shape[:1]]
    if wrong:
        raise InputError(
            f"{checkpoint.given} with a head of {(*tensors[wrong[0]].shape, 'no')[0]} classes",
            f"{len(net.state_dict()[wrong[0]])} classes, as the data have (a teacher may have others: --class-map)",
            _fine_tune(checkpoint, name),
        )
    tensors = _at_size(net, tensors, checkpoint)
    _check_shapes(net, tensors, checkpoint, name)
    order = class_order(checkpoint.class_names, class_names)
    if order == "other classes":
        raise InputError(
            f"{checkpoint.given} with classes {_shown(checkpoint.class_names or ())}",
            f"the data's classes {_shown(class_names or ())} (a teacher may have others: --class-map)",
            _fine_tune(checkpoint, name),
        )
    net.load_state_dict(_in_order(tensors, heads, order))


def start_from(net: nn.Module, checkpoint: Checkpoint, *, name: str, class_names: Sequence[str] | None) -> None:
    """Load start weights: a classifier of another size or for other classes is a new one.

    Raises:
        InputError: another architecture, or tensors that cannot be resampled for the network's image size.
    """
    tensors = checkpoint.tensors()
    heads = _head_tensors(net, tensors)
    _check_keys(net, tensors, checkpoint, name)
    own = net.state_dict()
    order = class_order(checkpoint.class_names, class_names)
    # A linear probe has seen the labels of all training images: who starts from it with few labels would have them all.
    if checkpoint.holds_probe or order == "other classes" or any(tensors[key].shape != own[key].shape for key in heads):
        renew_classifier(net)
        tensors |= {key: own[key] for key in heads}
    else:
        tensors = _in_order(tensors, heads, order)
    tensors = _at_size(net, tensors, checkpoint)
    _check_shapes(net, tensors, checkpoint, name)
    net.load_state_dict(tensors)


@torch.no_grad()
def renew_classifier(net: nn.Module) -> None:
    """Set the classifier to zero, so that training starts from equal probabilities.

    A random classifier would send noise into trained weights in the first steps, and much of it where it is the larger
    the fewer the classes, as in timm's EfficientNets (uniform up to 1 / sqrt(K)).
    """
    for name in classifier_names(net):
        for parameter in net.get_submodule(name).parameters():
            parameter.zero_()


def saved_size(checkpoint: Checkpoint) -> Size | None:
    """(height, width) with which the saved network was built, where its configuration says so."""
    size = checkpoint.model_args.get("img_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def class_order(
    saved: Sequence[str] | None, wanted: Sequence[str] | None
) -> list[int] | Literal["as saved", "other classes"]:
    """Which saved class each wanted one is.

    >>> class_order(["cat", "dog"], ["dog", "cat"])
    [1, 0]
    """
    if saved is None or wanted is None or list(saved) == list(wanted):
        return "as saved"
    if sorted(saved) != sorted(wanted) or len(set(saved)) < len(saved):
        return "other classes"
    return [list(saved).index(name) for name in wanted]


def _in_order(tensors: dict[str, Tensor], heads: Sequence[str], order: list[int] | str) -> dict[str, Tensor]:
    if isinstance(order, str):
        return tensors
    return tensors | {key: tensors[key][order] for key in heads}


def _head_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Keys whose first dimension counts classes."""
    names = classifier_names(net)
    own = net.state_dict()
    return [key for key in tensors if key in own and own[key].ndim and key.rpartition(".")[0] in names]


def _at_size(net: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors as the network needs them at its image size; saved at the same size, they stay as they are.

    Weights of convolutions and linear layers do not depend on the size: where these differ, nothing is resampled.
    """
    own = net.state_dict()
    differing = [key for key in own if tensors[key].shape != own[key].shape]
    saved, size = saved_size(checkpoint), size_of(net)
    if saved is not None and saved == size:
        return tensors
    turned = saved is not None and size is not None and saved[0] * size[1] != saved[1] * size[0]
    if not differing and not turned:
        return tensors
    layers = [net.get_submodule(key.rpartition(".")[0]) for key in differing]
    if any(isinstance(layer, (nn.Conv2d, nn.Conv1d, nn.Linear)) for layer in layers):
        return tensors
    return resampled(net, tensors, saved, checkpoint.model_args)


def _check_keys(net: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint, name: str) -> None:
    own = net.state_dict()
    missing = [key for key in own if key not in tensors]
    surplus = [key for key in tensors if key not in own]
    # older files lack the counters of batch norms, which only a momentum of None would read
    counters = [key for key in missing if key.endswith("num_batches_tracked")]
    tensors.update({key: own[key] for key in counters})
    missing = [key for key in missing if key not in counters]
    if missing or surplus:
        raise InputError(
            f"{checkpoint.given}, which lacks {_shown(missing)} and has {_shown(surplus)} besides",
            f"the weights of {name}",
            _guess(checkpoint, name),
        )


def _check_shapes(net: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint, name: str) -> None:
    own = net.state_dict()
    wrong = [key for key in own if tensors[key].shape != own[key].shape]
    if wrong:
        differing = [f"{key} {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}" for key in wrong[:SHOWN_KEYS]]
        raise InputError(
            f"{checkpoint.given}{_px(' saved at', saved_size(checkpoint))}: {'; '.join(differing)}{_more(wrong)}",
            f"the shapes of {name}{_px(' at', size_of(net))}",
            _guess(checkpoint, name),
        )


def _px(words: str, size: Size | None) -> str:
    return f"{words} {size[0]} x {size[1]} px" if size is not None else ""


def _fine_tune(checkpoint: Checkpoint, name: str) -> str:
    """The command that trains a new head on these weights, with what the saved network was built with."""
    saved = {key: value for key, value in checkpoint.model_args.items() if key not in ("num_classes", "global_pool")}
    size = saved.pop("img_size", None)
    if saved.get("in_chans") == DEFAULT_CHANNELS:
        del saved["in_chans"]
    words = ["crossdistill", "train", "--model", name, "--init", str(checkpoint.given)]
    if size is not None:
        words += ["--image-size", str(size if isinstance(size, int) else size[0])]
    words += [f"student.args.{key}={json.dumps(value, separators=(',', ':'))}" for key, value in saved.items()]
    return f"fine-tune it first: {shlex.join(words)} --data … --out …"


def _guess(checkpoint: Checkpoint, name: str) -> str:
    architecture = checkpoint.architecture
    if architecture and architecture != name:
        return f"its config.json says it is {architecture!r}: name that architecture"
    return "name the architecture, image size and constructor arguments that it was saved with"


def _shown(keys: Sequence[str]) -> str:
    return (", ".join(repr(key) for key in keys[:SHOWN_KEYS]) + _more(keys)) if keys else "nothing"


def _more(keys: Sequence[str]) -> str:
    return f", … ({len(keys)} in all)" if len(keys) > SHOWN_KEYS else ""
