"""A variational autoencoder for 28x28 grey images (Kingma and Welling, 2013, arXiv:1312.6114; 829,232 parameters).

Chance comes in from outside, as the input `noise`, so that the file gives the same answer each time and every number
of the loss can be had from its outputs. The one noise does two things: it draws the code of the given image, and it
is a code by itself, from which an image that nobody gave is drawn.
"""

from __future__ import annotations

from torch import Tensor, nn

SIZE = 28
HIDDEN = 512
CODE = 16


class VAE(nn.Module):
    """Encoder and decoder of one hidden layer each, in one network."""

    def __init__(self) -> None:
        """Build the layers; the code has CODE numbers."""
        super().__init__()
        pixels = SIZE * SIZE
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU())
        self.mean = nn.Linear(HIDDEN, CODE)
        self.log_variance = nn.Linear(HIDDEN, CODE)
        self.decoder = nn.Sequential(
            nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels), nn.Unflatten(1, (1, SIZE, SIZE))
        )

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map images [N,1,28,28] in 0..1 and standard normal noise [N,CODE] to four tensors.

        Logits of the image decoded from its code, of an image decoded from the noise alone, both [N,1,28,28], then
        mean and logarithm of the variance of the code, both [N,CODE].
        """
        hidden = self.encoder(image)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + (0.5 * log_variance).exp() * noise
        return self.decoder(code), self.decoder(noise), mean, log_variance


def build() -> nn.Module:
    """Return a new, randomly initialised network in training mode."""
    return VAE()
