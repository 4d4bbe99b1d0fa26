"""Networks for comparisons bit for bit, and images that fit them."""

import torch


def awake(model, alpha=0.05):
    """Some networks start with a classifier of zeros, which would make any two logits equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=alpha)
    return model


def images_for(model, batch_size=2):
    spec = model.spec.input
    return torch.rand(batch_size, spec.num_channels, *spec.image_size, generator=torch.Generator().manual_seed(1))
