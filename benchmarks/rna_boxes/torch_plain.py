"""The network of configs/rna_boxes.py:debug in PyTorch, its training steps, and what it is given.

Ours has its weights converted; targets and weights are ready made, of upper-triangle pixels alone.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rounds import num_threads, seconds
from cvae_jax.distributions import MAX_LOG_SCALE
from cvae_jax.model import Batch
from cvae_jax.tasks.rna_boxes.networks import HEADS
from cvae_jax.tasks.rna_boxes.pairs import unfold


class InTorch:
    """PyTorch's training steps of the same network, on batches that are ready made."""

    def __init__(self, torch: Any, settings: Any, heads: list[str], batches: list[dict[str, np.ndarray]], width: int):
        self.torch, self.settings = torch, settings.optimizer
        torch.set_num_threads(num_threads())
        self.network = network(torch, settings, heads, width)
        self.given = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]

    def run(self, steps: int) -> None:
        """Takes steps one after the other."""
        for number in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.network(self.given[number % len(self.given)]).backward()
            self.optimizer.step()

    def use(self, memory: str) -> None:
        """Lays images and kernels out so, and begins with a new optimiser, whose moments lie as the kernels do."""
        memory_format = getattr(self.torch, memory)
        self.network.to(memory_format=memory_format)
        for batch in self.given:
            batch["letters"] = batch["letters"].contiguous(memory_format=memory_format)
        rate, epsilon = self.settings.learning_rate, self.settings.epsilon
        self.optimizer = self.torch.optim.Adam(self.network.parameters(), rate, eps=epsilon, fused=True)

    def choose(self, steps: int) -> str:
        """Returns the faster memory format, which is used from then on."""
        took: dict[str, float] = {}
        for memory in ("contiguous_format", "channels_last") * 2:
            self.use(memory)
            self.run(2)
            took[memory] = min(took.get(memory, float("inf")), seconds(lambda: self.run(steps)))
        best = min(took, key=lambda memory: took[memory])
        self.use(best)
        return best


def network(torch: Any, settings: Any, heads: list[str], width: int) -> Any:
    """Returns the network as a PyTorch module, from a batch of `given` to its loss.

    Args:
      torch: the module, which is imported only where this is compared.
      settings: of the stage.
      heads: those of the likelihood.
      width: of what the recognition network sees of y.
    """
    nn, functional = torch.nn, torch.nn.functional
    latent, decoder, channels = settings.latent, settings.decoder, settings.filters[-1]

    def mlp(inputs: int, hidden: int, outputs: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, outputs))

    class BoxCVAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = []
            for inputs, outputs in itertools.pairwise((8, *settings.filters)):
                layers.append(nn.Conv2d(inputs, outputs, settings.width, padding="same", bias=False))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            self.tower = nn.Sequential(*layers)
            self.recognition = mlp(channels + width, settings.hidden, 2 * latent)
            of_heads = {name: mlp(channels + latent, decoder, HEADS[name][0] * HEADS[name][1]) for name in heads}
            self.generation = nn.ModuleDict(of_heads)

        def forward(self, given: dict[str, Any], noise: bool = True) -> Any:
            """Returns the negative ELBO, nats a structure; without noise z is the posterior's mean."""
            images = self.tower(given["letters"]).flatten(2)
            features = images.index_select(2, given["pixels"]).transpose(1, 2)
            mean, log_scale = self.recognition(torch.cat([features, given["seen"]], -1)).chunk(2, -1)
            log_scale = MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)
            scale = log_scale.exp()
            loss = (0.5 * (scale**2 + mean**2 - 1) - log_scale).sum()
            z = torch.addcmul(mean, scale, torch.randn_like(mean)) if noise else mean
            features_and_z = torch.cat([features, z], -1)
            for name, head in self.generation.items():
                outputs, target, weight = head(features_and_z), given[f"{name}/target"], given[f"{name}/weight"]
                if name == "on":
                    loss = loss + functional.binary_cross_entropy_with_logits(outputs, target, weight, reduction="sum")
                    continue
                # One row for each element of y; those in boxes count.
                outputs = outputs.reshape(-1, HEADS[name][1]).index_select(0, given[f"{name}/inside"])
                if name == "scalar":
                    losses = 0.5 * (outputs[:, 0] - target) ** 2 + 0.5 * np.log(2 * np.pi)
                else:
                    losses = functional.cross_entropy(outputs, target, reduction="none")
                loss = loss + losses @ weight
            return loss / len(given["letters"])

    return BoxCVAE()


def converted(params: dict[str, Any], heads: list[str]) -> dict[str, np.ndarray]:
    """Returns our parameters, or their gradients, by PyTorch's names."""
    renamed: dict[str, Any] = {}
    tower = params["of_pairs"]
    for number in range(len(tower) // 2):
        renamed[f"tower.{3 * number}.weight"] = tower[f"Conv_{number}"]["kernel"].transpose(3, 2, 0, 1)
        norm = tower[f"BatchNorm_{number}"]
        renamed |= {f"tower.{3 * number + 1}.weight": norm["scale"], f"tower.{3 * number + 1}.bias": norm["bias"]}
    layers = {"recognition": ("recognition_x", "recognition_y", "recognition_out")}
    for name in heads:
        layers[f"generation.{name}"] = (f"generation_x_{name}", f"generation_z_{name}", f"generation_out_{name}")
    for name, (of_x, of_other, of_out) in layers.items():
        # A layer of two inputs side by side has both kernels in one.
        both = jnp.concatenate([params[of_x]["kernel"], params[of_other]["kernel"]])
        renamed |= {f"{name}.0.weight": both.T, f"{name}.0.bias": params[of_x]["bias"]}
        renamed |= {f"{name}.2.weight": params[of_out]["kernel"].T, f"{name}.2.bias": params[of_out]["bias"]}
    return {name: np.array(array) for name, array in renamed.items()}


def given(batch: Batch, heads: list[str]) -> dict[str, np.ndarray]:
    """Returns a batch, of one structure a sequence, as arrays for PyTorch: all that does not depend on weights."""
    letters = np.eye(5, dtype=np.float32)[np.asarray(batch.x["sequence"])][..., 1:]  # N and padding are 0
    size, length = letters.shape[:2]
    shape = (size, length, length, 4)
    tiled = np.concatenate([np.broadcast_to(letters[:, :, None], shape), np.broadcast_to(letters[:, None], shape)], -1)
    i, j = np.triu_indices(length, 1)

    def pixels(folded: jax.Array) -> np.ndarray:
        return np.array(unfold(folded[:, 0], 1))[:, i, j]

    arrays = {"letters": tiled.transpose(0, 3, 1, 2).copy(), "pixels": i * length + j}
    y = {name: pixels(batch.y[name]) for name in heads}
    weight = {name: pixels(batch.weight[name]) for name in heads}
    seen = []
    for name in heads:
        _, classes, types = HEADS[name]
        on = y["on"][..., types]
        if name == "on":
            seen.append(on)
            arrays |= {"on/target": y["on"], "on/weight": np.broadcast_to(weight["on"], on.shape).copy()}
            continue
        of_head = y[name] / 10 * on if name == "scalar" else np.eye(classes)[y[name]] * on[..., None]
        seen.append(of_head.reshape(*on.shape[:2], -1))
        inside = np.flatnonzero(on)
        target = y[name].reshape(-1)[inside]
        arrays[f"{name}/inside"] = inside
        arrays[f"{name}/target"] = target if name == "scalar" else target.astype(np.int64)
        arrays[f"{name}/weight"] = weight[name].reshape(-1)[inside]
    return {**arrays, "seen": np.concatenate(seen, -1).astype(np.float32)}
