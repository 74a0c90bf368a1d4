"""Accuracy and cost of inference on encrypted digits, against the same models in the clear.

A quarter of scikit-learn's digits (8 x 8 pixels) is held out. A logistic regression and a small CNN with square
activations are trained on the rest in the clear, then asked about what was held out under CKKS, all images in one
request. CPU time is that of one process; SEAL computes in one thread. For comparison the CNN's cost for one image in
TenSEAL's own way, and at its tutorial's parameters: windows of one image in one ciphertext, kernels and matrices by
rotations (``conv2d_im2col``, ``mm``).

    .venv/bin/python scripts/studies/encrypted_inference.py         # about half a minute
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import tenseal
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from fedray.encrypted import Client, EncryptedModel, Square
from fedray.environment import environment

T = TypeVar("T")
SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Figures:
    """Of one model; times are CPU seconds for a request, which holds up to ``most_images``."""

    model: str
    depth: int
    poly_degree: int
    coefficient_bits: tuple[int, ...]
    images: int
    most_images: int
    accuracy: float
    encrypted_accuracy: float
    largest_error: float
    encrypt_s: float
    server_s: float
    decrypt_s: float
    request_bytes: int
    reply_bytes: int

    @property
    def total_s(self) -> float:
        return self.encrypt_s + self.server_s + self.decrypt_s


def logistic() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), Square(), nn.Flatten(), nn.Linear(72, 32), Square(), nn.Linear(32, 10)
    )


MODELS: dict[str, Callable[[], nn.Sequential]] = {"logistic": logistic, "cnn": cnn}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images in 0 to 1, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).reshape(-1, *SHAPE) / 16
    parts = train_test_split(images, torch.tensor(data.target), test_size=0.25, random_state=0, stratify=data.target)
    return parts[0], parts[1], parts[2], parts[3]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()


def timed(compute: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and the CPU seconds that it took."""
    began = time.process_time()
    found = compute()
    return found, time.process_time() - began


def measured(name: str, module: nn.Module, images: Tensor, labels: Tensor) -> Figures:
    model = EncryptedModel(module, SHAPE)
    client = Client(model.public_description)
    request, encrypt_s = timed(lambda: client.encrypt(images))
    reply, server_s = timed(lambda: model(request))
    outputs, decrypt_s = timed(lambda: client.decrypt(reply))
    with torch.no_grad():
        expected = module.eval()(images)
    parameters = model.public_description.parameters
    return Figures(
        name,
        parameters.depth,
        parameters.poly_degree,
        parameters.coefficient_bits,
        len(images),
        client.most_images,
        accuracy(expected, labels),
        accuracy(outputs, labels),
        float((outputs - expected).abs().max()),
        encrypt_s,
        server_s,
        decrypt_s,
        len(request),
        len(reply),
    )


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).float().mean())


@dataclass(frozen=True)
class OneByOne:
    """Cost of one image in TenSEAL's own way: CPU seconds and bytes."""

    seconds: float
    image_bytes: int
    key_bytes: int
    largest_error: float


def one_by_one(module: nn.Sequential, image: Tensor) -> OneByOne:
    """The CNN on one image of shape (8, 8), with the parameters of TenSEAL's tutorial."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[31, *[26] * 6, 31], n_threads=1)
    context.global_scale = 2.0**26
    context.generate_galois_keys()
    windows, n_windows = tenseal.im2col_encoding(context, image.tolist(), 3, 3, 2)
    convolution, first, second = module[0], module[3], module[5]

    def computed() -> tenseal.CKKSVector:
        channels = [
            windows.conv2d_im2col(kernel[0].tolist(), n_windows) + bias.item()
            for kernel, bias in zip(convolution.weight, convolution.bias, strict=True)
        ]
        values = tenseal.CKKSVector.pack_vectors(channels)
        values.square_()
        values = values.mm(first.weight.T.tolist()) + first.bias.tolist()
        values.square_()
        return values.mm(second.weight.T.tolist()) + second.bias.tolist()

    outputs, seconds = timed(computed)
    with torch.no_grad():
        error = float((torch.tensor(outputs.decrypt()) - module(image[None, None])[0]).abs().max())
    keys = context.serialize(save_public_key=False, save_secret_key=False)
    return OneByOne(seconds, len(windows.serialize()), len(keys), error)


def row(one: Figures) -> str:
    per_image = [1e3 * one.total_s / n for n in (one.images, one.most_images)]
    return (
        f"{one.model:>9s} {one.depth:5d} {one.poly_degree:6d} | {one.accuracy:8.2%} {one.encrypted_accuracy:9.2%} "
        f"{one.largest_error:8.1e} | {one.encrypt_s:7.2f} {one.server_s:6.2f} {one.decrypt_s:7.2f} | "
        f"{per_image[0]:9.2f} {per_image[1]:8.2f} | {one.request_bytes / 1e6:7.1f} {one.reply_bytes / 1e6:5.2f}"
    )


def alone_row(one: OneByOne) -> str:
    sizes = f"{one.image_bytes / 1e6:.2f} MB an image, {one.key_bytes / 1e6:.0f} MB of keys"
    return f"the CNN on one image by rotations: {one.seconds:.2f} CPU s, {sizes}, error {one.largest_error:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--models", choices=list(MODELS), nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("runs/studies/encrypted_inference.json"))
    asked = parser.parse_args()

    images, held_out, labels, held_out_labels = digits()
    print(
        "                       | accuracy encrypted    error | CPU s: client server  client | ms an image, all slots"
        " | MB: request reply"
    )
    found, alone = [], None
    for name in asked.models:
        torch.manual_seed(0)
        module = MODELS[name]()
        train(module, images, labels, asked.epochs)
        found.append(measured(name, module, held_out, held_out_labels))
        print(row(found[-1]), flush=True)
        if name == "cnn":
            alone = one_by_one(module, held_out[0, 0])
            print(alone_row(alone))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"environment": environment(), "models": [asdict(one) for one in found], "alone": alone and asdict(alone)}
    asked.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
