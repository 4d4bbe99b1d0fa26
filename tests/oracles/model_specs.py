"""Specs of published models at 224 pixels, by hand from the stage table of the OFA paper's code."""

from crossdistill.contracts import InputSpec, ModelSpec, StageSpec

INPUT = InputSpec(image_size=(224, 224), num_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def model(name, family, embedding_dim, stages, num_classes=100):
    return ModelSpec(
        name=name,
        family=family,
        num_classes=num_classes,
        embedding_dim=embedding_dim,
        stages=tuple(stages),
        input=INPUT,
        num_parameters=0,
    )


def pyramid(channels, layout, sides=(56, 28, 14, 7)):
    return [
        StageSpec(channels=c, stride=224 // side, layout=layout, num_prefix_tokens=0, grid=(side, side))
        for c, side in zip(channels, sides, strict=True)
    ]


def isotropic(width, num_prefix_tokens, side=14, num_stages=4):
    return [StageSpec(width, 224 // side, "NLC", num_prefix_tokens, (side, side))] * num_stages


def resnet18(num_classes=100):
    return model("resnet18", "cnn", 512, pyramid((64, 128, 256, 512), "NCHW"), num_classes)


def mobilenetv2(num_classes=100):
    return model("mobilenetv2", "cnn", 1280, pyramid((24, 32, 96, 1280), "NCHW"), num_classes)


def deit_tiny(num_classes=100):
    return model("deit_tiny", "transformer", 192, isotropic(192, 1), num_classes)


def swin(width, num_classes=100):
    widths = (width, 2 * width, 4 * width, 8 * width)
    return model(f"swin of width {width}", "transformer", 8 * width, pyramid(widths, "NHWC"), num_classes)


def resmlp_s12(num_classes=100):
    return model("resmlp_s12", "mlp", 384, isotropic(384, 0), num_classes)


def teacher(embedding_dim, num_classes=100):
    return model("teacher", "transformer", embedding_dim, isotropic(embedding_dim, 1), num_classes)
