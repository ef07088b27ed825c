"""Convolutional autoencoders, images in and images out: the purifiers of the purification chapter.

The shape follows the abstract of Koo, Chae and Lee 2023 (doi:10.3390/app132011313), which names a
convolutional autoencoder and gives no layers; widths and depth are this package's choice. There is no skip
connection: all information passes the bottleneck, a quarter of the image's height and width.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdsec.models.layers import conv_bn


class Autoencoder(nn.Module):
    """Float images (N, C, H, W) to images of the same shape, both in [0, 1]; 4 divides H and W.

    Args:
        channels: C.
        widths: of the three encoder layers; the decoder mirrors them.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = widths
        self.encoder = nn.Sequential(
            conv_bn(channels, first),
            conv_bn(first, second, stride=2),
            conv_bn(second, third, stride=2),
        )
        # Upsampling and a convolution: a transposed convolution would leave a checkerboard pattern.
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            conv_bn(third, second),
            nn.Upsample(scale_factor=2),
            conv_bn(second, first),
            nn.Conv2d(first, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstruction, same shape as ``images``, in [0, 1]."""
        rebuilt: Tensor = self.decoder(self.encoder(images))
        return rebuilt
