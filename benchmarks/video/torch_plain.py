"""SVG with DCGAN frames in PyTorch, written plainly a frame at a time, and with all frames at once.

Ours has its weights converted. Training is with teacher forcing, from the first frame on.
"""

from typing import Any

import numpy as np

from benchmarks.rounds import num_threads
from cvae_jax.distributions import MAX_LOG_SCALE
from cvae_jax.model import Batch
from cvae_jax.tasks.video.networks import LEVER


class InTorch:
    """PyTorch's training steps of the same network, on batches that are ready made."""

    def __init__(self, torch: Any, config: Any, widths: tuple[int, ...], columns: int, batches: list[Batch]):
        self.torch = torch
        torch.set_num_threads(num_threads())
        self.network = network(torch, config, widths, columns, batches[0].y.shape[-1])
        rate, epsilon = config.cvae.optimizer.learning_rate, config.cvae.optimizer.epsilon
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, eps=epsilon, fused=True)
        self.given = []
        for batch in batches:
            frames = np.concatenate([batch.x["frames"], batch.y], 1).transpose(1, 0, 4, 2, 3)
            condition = np.asarray(batch.x["condition"]).swapaxes(0, 1)
            self.given.append([torch.from_numpy(np.ascontiguousarray(array)) for array in (frames, condition)])

    def run(self, steps: int, at_once: bool) -> None:
        """Takes steps one after the other."""
        for number in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.network(*self.given[number % len(self.given)], at_once).backward()
            self.optimizer.step()


def network(torch: Any, config: Any, widths: tuple[int, ...], columns: int, channels: int) -> Any:
    """Returns SVG-LP as a PyTorch module, from frames and conditions [frames, batch, ...] to its loss.

    Args:
      torch: the module, which is imported only where this is compared.
      config: of configs/video.py.
      widths: channels of each level of frames.
      columns: of the conditions.
      channels: of a frame.
    """
    nn = torch.nn
    settings, num_past = config.cvae, config.num_past
    features, latent, hidden = settings.features, settings.latent, settings.hidden

    def normalised(layer: Any, size: int) -> Any:
        return nn.Sequential(layer, nn.BatchNorm2d(size), nn.LeakyReLU(0.2, inplace=True))

    class Recurrent(nn.Module):
        def __init__(self, inputs: int, layers: int, outputs: int) -> None:
            super().__init__()
            self.embed = nn.Linear(inputs, hidden)
            self.cells = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
            self.output = nn.Linear(hidden, outputs)

        def forward(self, inputs: Any, carry: Any) -> Any:
            hidden, after = self.embed(inputs), []
            for number, cell in enumerate(self.cells):
                state = cell(hidden, None if carry is None else carry[number])
                after.append(state)
                hidden = state[0]
            return self.output(hidden), after

    class SVG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs = (channels, *widths[:-1])
            down = [nn.Conv2d(above, width, 4, 2, 1, bias=False) for above, width in zip(inputs, widths, strict=True)]
            self.down = nn.ModuleList(normalised(layer, width) for layer, width in zip(down, widths, strict=True))
            self.ending = nn.Sequential(
                nn.Conv2d(widths[-1], features, 4, bias=False), nn.BatchNorm2d(features), nn.Tanh()
            )
            self.beginning = normalised(nn.ConvTranspose2d(features, widths[-1], 4, bias=False), widths[-1])
            self.up = nn.ModuleList(
                nn.Sequential(nn.ConvTranspose2d(2 * widths[0], channels, 4, 2, 1), nn.Sigmoid())
                if level == 0
                else normalised(
                    nn.ConvTranspose2d(2 * widths[level], widths[level - 1], 4, 2, 1, bias=False), widths[level - 1]
                )
                for level in range(len(widths))
            )
            self.predictor = Recurrent(features + latent + columns, settings.predictor_layers, features)
            self.recognition = Recurrent(features, 1, 2 * latent)
            self.prior = Recurrent(features, 1, 2 * latent)
            self.standardised = nn.BatchNorm1d(columns, affine=False)
            self.log_scale = nn.Parameter(torch.zeros(()))

        def encode(self, frames: Any) -> Any:
            skips = []
            for layer in self.down:
                frames = layer(frames)
                skips.append(frames)
            return self.ending(frames).flatten(1), skips

        def decode(self, features: Any, skips: list[Any]) -> Any:
            frames = self.beginning(features[..., None, None])
            for layer, skip in zip(reversed(self.up), reversed(skips), strict=True):
                frames = layer(torch.cat([frames, skip], 1))
            return frames

        def gaussian(self, parameters: Any) -> Any:
            mean, log_scale = parameters.chunk(2, -1)
            return mean, MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)

        def forward(self, frames: Any, condition: Any, at_once: bool, noise: bool = True) -> Any:
            """Returns the negative ELBO, nats a video; without noise z is the posterior's mean."""
            num_frames, batch = frames.shape[:2]
            condition = self.standardised(condition.flatten(0, 1)).unflatten(0, (num_frames, batch))
            if at_once:
                flat, skips = self.encode(frames.flatten(0, 1))
                features = flat.unflatten(0, (num_frames, batch))
                skips = [level.unflatten(0, (num_frames, batch)) for level in skips]
            else:
                features, skips = zip(*(self.encode(frame) for frame in frames), strict=True)
            carries = [None, None, None]
            predicted, kept, kl, error = [], [], 0.0, 0.0
            for t in range(1, num_frames):
                parameters, carries[0] = self.recognition(features[t], carries[0])
                mean, log_scale = self.gaussian(parameters)
                parameters, carries[1] = self.prior(features[t - 1], carries[1])
                prior_mean, prior_log_scale = self.gaussian(parameters)
                scale, prior_scale = log_scale.exp(), prior_log_scale.exp()
                z = torch.addcmul(mean, scale, torch.randn_like(mean)) if noise else mean
                distance = (mean - prior_mean) / prior_scale
                ratio = scale / prior_scale
                kl = kl + (0.5 * (ratio**2 + distance**2 - 1) - log_scale + prior_log_scale).sum()
                outputs, carries[2] = self.predictor(torch.cat([features[t - 1], z, condition[t]], 1), carries[2])
                source = min(t, num_past) - 1
                if at_once:
                    predicted.append(torch.tanh(outputs))
                    kept.append(source)
                else:
                    error = error + ((self.decode(torch.tanh(outputs), skips[source]) - frames[t]) ** 2).sum()
            if at_once:
                chosen = [level[kept].flatten(0, 1) for level in skips]
                error = ((self.decode(torch.cat(predicted), chosen) - frames[1:].flatten(0, 1)) ** 2).sum()
            log_scale = MAX_LOG_SCALE * torch.tanh(LEVER * self.log_scale / MAX_LOG_SCALE)
            pixels = frames[1:].numel()
            nats = 0.5 * error * torch.exp(-2 * log_scale) + pixels * (log_scale + 0.5 * np.log(2 * np.pi))
            return (nats + kl) / batch

    return SVG()


def converted(params: dict[str, Any], num_levels: int) -> dict[str, np.ndarray]:
    """Returns our parameters, or their gradients, by PyTorch's names; the second bias of its LSTM cells is left out."""
    renamed: dict[str, Any] = {"log_scale": params["log_scale"]}

    def norm(name: str, ours: dict[str, Any]) -> None:
        renamed.update({f"{name}.weight": ours["BatchNorm_0"]["scale"], f"{name}.bias": ours["BatchNorm_0"]["bias"]})

    encoder, decoder = params["encoder"], params["decoder"]
    side = 4
    for level in range(num_levels):
        renamed[f"down.{level}.0.weight"] = np.transpose(encoder[f"Conv_{level}"]["kernel"], (3, 2, 0, 1))
        norm(f"down.{level}.1", encoder[f"Normalised_{level}"])
        both = [decoder[f"{part}_{level}"]["kernel"] for part in ("below", "skip")]
        renamed[f"up.{level}.0.weight"] = np.transpose(np.concatenate(both, 2), (2, 3, 0, 1))
        if level:
            norm(f"up.{level}.1", decoder[f"normalised_{level - 1}"])
    renamed["up.0.0.bias"] = decoder["below_0"]["bias"]
    ending, beginning = encoder["Ending_0"], decoder["beginning"]
    kernel = np.asarray(ending["Dense_0"]["kernel"])
    renamed["ending.0.weight"] = kernel.reshape(side, side, -1, kernel.shape[1]).transpose(3, 2, 0, 1)
    norm("ending.1", ending["Normalised_0"])
    kernel = np.asarray(beginning["Dense_0"]["kernel"])
    renamed["beginning.0.weight"] = kernel.reshape(len(kernel), side, side, -1).transpose(0, 3, 1, 2)
    norm("beginning.1", beginning["Normalised_0"])
    for name, ours in (("predictor", "predictor"), ("recognition", "recognition_net"), ("prior", "prior_net")):
        for layer, part in (("embed", "embed"), ("output", "output")):
            renamed[f"{name}.{layer}.weight"] = params[ours][part]["kernel"].T
            renamed[f"{name}.{layer}.bias"] = params[ours][part]["bias"]
        cells = [layer for layer in sorted(params[ours]) if layer.startswith("cells")]
        for number, cell in enumerate(cells):
            gates = params[ours][cell]
            for theirs, kind in (("weight_ih", "i"), ("weight_hh", "h")):
                kernels = [gates[f"{kind}{gate}"]["kernel"].T for gate in "ifgo"]
                renamed[f"{name}.cells.{number}.{theirs}"] = np.concatenate(kernels)
            renamed[f"{name}.cells.{number}.bias_hh"] = np.concatenate([gates[f"h{gate}"]["bias"] for gate in "ifgo"])
    return {name: np.array(array) for name, array in renamed.items()}
