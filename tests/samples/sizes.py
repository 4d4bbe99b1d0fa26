"""Sizes that are tried on one network of every file of timm, and those that some cannot have."""

SIZES = (32, 64, 96, 160, 224, 384)
EVERY = set(SIZES)

REFUSED = {
    # the only files of timm whose smallest classifier cannot have each of the six sizes
    "byoanet": EVERY,  # halo attention: its blocks of 8 must divide the maps
    "crossvit": EVERY,  # two scales: only multiples of 240
    "csatv2": {32},
    "efficientformer": EVERY - {224},  # one table of 7 x 7 positions
    "inception_resnet_v2": {32, 64},
    "inception_v3": {32, 64},
    "inception_v4": {32, 64},
}

REFUSED_IN_THE_ZOO = REFUSED | {"deepseek_vit": EVERY - {224}}
"""With the file that only the zoo has: deepseek_vit has patches of 14, which must divide the image."""
