"""The networks of the benchmark of the paper's methods, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import CHECKPOINT

if TYPE_CHECKING:
    import torch

Tensors = dict[str, np.ndarray]
BATCH = 500


@dataclass(frozen=True)
class Network:
    """A small trained network: convolutions or none, then dense layers with ReLU between them.

    Attributes:
        images: File with ``test_images`` and ``test_labels``.
        dense: Names of the dense layers, in order; the last one gives the logits.
        features: What the first dense layer is given, from tensors and images (B, height, width[, 3]) in 0..255.
    """

    name: str
    title: str
    checkpoint: Path
    images: str
    dense: tuple[str, ...]
    features: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the dense layers' matrices."""
        return tuple(f"{layer}.weight" for layer in self.dense)


def lenet300_features(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) / 255


def caffe_lenet_features(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import conv2d, max_pool2d

    x = images[:, None] / 256  # Caffe's scale, not 255
    for conv in ("conv1", "conv2"):  # without activations, as in the original
        x = max_pool2d(conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"]), 2)
    return x.flatten(1)


def alexsmall_features(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import conv2d, max_pool2d

    mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.243, 0.262])
    x = ((images / 255 - mean) / deviation).permute(0, 3, 1, 2)
    for conv, padding in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
        x = max_pool2d(conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=padding).relu(), 2)
    return x.flatten(1)


def networks(data: Path) -> list[Network]:
    return [
        Network("lenet300", "LeNet-300-100, MNIST", CHECKPOINT, "mnist.npz", ("fc1", "fc2", "fc3"), lenet300_features),
        Network("caffe-lenet", "Caffe LeNet, MNIST", data / "caffe_lenet_mnist.pt", "mnist.npz", ("ip1", "ip2"),
                caffe_lenet_features),
        Network("alexsmall", "AlexSmall, CIFAR-10", data / "alexsmall_cifar10.pt", "cifar10.npz", ("fc1", "fc2", "fc3"),
                alexsmall_features),
    ]  # fmt: skip


class Judge:
    """Accuracy on the whole test set. What the convolutions give is kept for as long as their weights are exact."""

    def __init__(self, network: Network, original: Tensors, data: Path) -> None:
        import torch

        with np.load(data / network.images) as arrays:
            self._images = torch.from_numpy(arrays["test_images"])
            self._labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
        self._network = network
        self._convolutions = {
            name: array for name, array in original.items() if name.split(".")[0] not in network.dense
        }
        self._features = self._features_of(original)

    def accuracy(self, tensors: Tensors) -> float:
        """Share of the images that are classified right, in percent."""
        import torch

        is_exact = all(np.array_equal(array, tensors[name]) for name, array in self._convolutions.items())
        x = self._features if is_exact else self._features_of(tensors)
        *hidden, last = self._network.dense
        with torch.inference_mode():
            for layer in hidden:
                x = torch.nn.functional.linear(x, *_parameters(tensors, layer)).relu()
            logits = torch.nn.functional.linear(x, *_parameters(tensors, last))
        return 100 * float((logits.argmax(1) == self._labels).double().mean())

    def _features_of(self, tensors: Tensors) -> torch.Tensor:
        import torch

        state = {name: torch.from_numpy(tensors[name]) for name in self._convolutions}
        with torch.inference_mode():
            return torch.cat([self._network.features(state, batch.float()) for batch in self._images.split(BATCH)])


def _parameters(tensors: Tensors, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.from_numpy(tensors[f"{layer}.weight"]), torch.from_numpy(tensors[f"{layer}.bias"])
