"""Pyro, with the choices of its CVAE tutorial.

Those are: every image is a PIL image that is made a tensor and masked with -1 by transforms, one image at a
time; a DataLoader without workers; SVI with Trace_ELBO; probabilities of the unobserved pixels picked by a
boolean index.
"""

import time
from typing import Any

import numpy as np
import pyro
import torch
from PIL import Image
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.process import serve, settings
from benchmarks.quadrants import problem
from benchmarks.quadrants.torch_plain import mlp
from benchmarks.rounds import num_threads

MISSING = -1


def to_tensor(sample: dict[str, Any]) -> dict[str, Any]:
    """Returns the PIL image as floats in [0, 1], [1, height, width], and the digit as an integer tensor."""
    pixels = torch.from_numpy(np.array(sample["original"], np.uint8, copy=True))
    sample["original"] = pixels[None].contiguous().float().div(255)
    sample["digit"] = torch.as_tensor(np.asarray(sample["digit"]), dtype=torch.int64)
    return sample


def mask(sample: dict[str, Any]) -> dict[str, Any]:
    """Adds input and output as images of their own, with -1 where a pixel belongs to the other."""
    whole = sample["original"].squeeze()
    height, width = whole.shape
    output = whole.clone()
    output[height // 2 :, : width // 2] = MISSING
    shown = whole.clone()
    shown[output != MISSING] = MISSING
    sample["input"], sample["output"] = shown, output
    return sample


class Quadrants(Dataset):
    """Digits, transformed one by one as they are asked for."""

    def __init__(self, images: np.ndarray, transforms: list[Any]):
        self.images, self.transforms = images, transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"original": Image.fromarray(self.images[item]), "digit": item % 10}
        for transform in self.transforms:
            sample = transform(sample)
        return sample


def completed(x: Tensor, y: Tensor) -> Tensor:
    """Returns x with its missing pixels taken from y, flat."""
    whole = x.clone()
    missing = x == MISSING
    whole[missing] = y[missing]
    return whole.flatten(1)


class CVAE(nn.Module):
    """Model and guide."""

    def __init__(self):
        super().__init__()
        pixels, hidden, latent = problem.PIXELS, problem.HIDDEN, problem.LATENT
        self.baseline = mlp(pixels, hidden, hidden, pixels)  # frozen by no_grad, as there
        self.prior = mlp(pixels, hidden, hidden, 2 * latent)
        self.recognition = mlp(pixels, hidden, hidden, 2 * latent)
        self.generation = mlp(latent, hidden, hidden, pixels)

    def latent(self, network: nn.Module, image: Tensor) -> Tensor:
        """Samples z from the Gaussian that the network gives."""
        mean, log_scale = network(image).chunk(2, -1)
        return pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    def model(self, x: Tensor, y: Tensor) -> None:
        """Samples from p(z|x) p(y|x,z)."""
        pyro.module("cvae", self)
        with pyro.plate("data"):
            with torch.no_grad():
                guess = torch.sigmoid(self.baseline(x.flatten(1))).view(x.shape)
            z = self.latent(self.prior, completed(x, guess))
            probability = torch.sigmoid(self.generation(z))
            missing = (x == MISSING).flatten(1)
            probability = probability[missing].view(len(x), -1)
            value = y.flatten(1)[missing].view(len(x), -1)
            # Grey values are no Bernoulli outcomes, so the support is not checked.
            pyro.sample("y", dist.Bernoulli(probability, validate_args=False).to_event(1), obs=value)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Samples from q(z|x,y)."""
        with pyro.plate("data"):
            self.latent(self.recognition, completed(x, y))


class Contender:
    """An epoch of SVI over the DataLoader."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(num_threads())
        pyro.set_rng_seed(0)
        self.steps = settings["train_steps"]
        images = problem.load_images(settings["data_dir"])[: problem.NUM_TRAIN]
        dataset = Quadrants(images, [to_tensor, mask])
        self.loader = DataLoader(dataset, settings["batch_size"], shuffle=True, num_workers=0, drop_last=True)
        cvae = CVAE()
        adam = pyro.optim.Adam({"lr": problem.LEARNING_RATE})
        self.svi = SVI(cvae.model, cvae.guide, adam, loss=Trace_ELBO())

    def prepare(self) -> dict[str, Any]:
        """Takes a few steps, so that memory is touched."""
        self._epoch(5)
        return {"versions": {"pyro-ppl": pyro.__version__, "torch": torch.__version__}, "once": {}}

    def _epoch(self, steps: int) -> float:
        for done, batch in enumerate(self.loader, 1):
            loss = self.svi.step(batch["input"], batch["output"]) / len(batch["input"])
            if done == steps:
                break
        return loss

    def train(self) -> dict[str, Any]:
        """Trains for one epoch, or its first steps."""
        began = time.perf_counter()
        loss = self._epoch(self.steps)
        return {"seconds": time.perf_counter() - began, "steps": self.steps, "loss": loss}

    def data_only(self) -> dict[str, Any]:
        """Goes through the same batches without taking a step."""
        began = time.perf_counter()
        for done, _ in enumerate(self.loader, 1):
            if done == self.steps:
                break
        return {"seconds": time.perf_counter() - began, "steps": self.steps}


if __name__ == "__main__":
    made = Contender(settings())
    serve({"prepare": made.prepare, "train": made.train, "data_only": made.data_only})
