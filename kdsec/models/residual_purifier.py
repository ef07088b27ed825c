"""A purifier without a bottleneck: it adds a correction to the image, at full resolution.

The architecture is this package's choice. It shows what the bottleneck of the autoencoders costs and gives.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdsec.models.layers import conv_bn


class ResidualPurifier(nn.Module):
    """Four convolutions of stride 1: images (N, C, H, W) in [0, 1] to images of the same shape, in [0, 1].

    It begins as the identity: the last layer starts at zero.

    Args:
        channels: C.
        width: of the three hidden layers; 24 gives 11,000 parameters for one channel.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.correction = nn.Sequential(
            conv_bn(channels, width), conv_bn(width, width), conv_bn(width, width), last
        )

    def forward(self, images: Tensor) -> Tensor:
        """Corrected images, same shape as ``images``, in [0, 1]."""
        return (images + self.correction(images)).clamp(0, 1)
