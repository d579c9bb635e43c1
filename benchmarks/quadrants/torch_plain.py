"""Plain PyTorch, written to be fast: data in memory, batched masks, analytic KL, no DataLoader."""

import itertools
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.process import serve, settings
from benchmarks.quadrants import problem
from benchmarks.rounds import num_threads, seconds

CHUNKS = (500, 1000, 2000, 4000, 8000)


def mlp(*widths: int) -> nn.Sequential:
    """Returns linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Networks(nn.Module):
    """The four networks; encoders give mean and log scale side by side."""

    def __init__(self):
        super().__init__()
        pixels, hidden, latent = problem.PIXELS, problem.HIDDEN, problem.LATENT
        self.baseline = mlp(pixels, hidden, hidden, pixels).requires_grad_(False)
        self.prior = mlp(pixels, hidden, hidden, 2 * latent)
        self.recognition = mlp(pixels, hidden, hidden, 2 * latent)
        self.generation = mlp(latent, hidden, hidden, pixels)

    def encode(self, image: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns mean and log scale of p(z|x), then of q(z|x,y); the image with its y is the whole image."""
        x = image * observed
        with torch.no_grad():
            guess = torch.sigmoid(self.baseline(x))
        return *self.prior(x + (1 - observed) * guess).chunk(2, -1), *self.recognition(image).chunk(2, -1)

    def loss(self, image: Tensor, observed: Tensor) -> Tensor:
        """Returns the negative ELBO of one sample, nats per image, [batch, pixels] -> []."""
        p_mean, p_log, q_mean, q_log = self.encode(image, observed)
        z = q_mean + q_log.exp() * torch.randn_like(q_mean)
        distance = (q_mean - p_mean) * torch.exp(-p_log)
        kl = p_log - q_log + 0.5 * (torch.exp(2 * (q_log - p_log)) + distance**2 - 1)
        logits = self.generation(z)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, image, weight=1 - observed, reduction="sum")
        return (cross_entropy + kl.sum()) / len(image)

    def log_weights(self, code: tuple[Tensor, ...], y: Tensor, weight: Tensor, samples: int) -> Tensor:
        """Returns log p(y|x,z) p(z|x) / q(z|x,y) of fresh z, [samples, examples]."""
        p_mean, p_log, q_mean, q_log = code
        noise = torch.randn(samples, *q_mean.shape)
        z = torch.addcmul(q_mean, q_log.exp(), noise)
        logits = self.generation(z)
        distance = (z - p_mean) * torch.exp(-p_log)
        log_ratio = 0.5 * (noise**2 - distance**2).sum(-1) + (q_log - p_log).sum(-1)
        return (weight * (y * logits - functional.softplus(logits))).sum(-1) + log_ratio


class Contender:
    """Training and importance sampling of the same networks; `compiled` runs both through torch.compile."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(num_threads())
        torch.manual_seed(0)
        self.steps, self.batch_size = settings["train_steps"], settings["batch_size"]
        self.num_samples, num_examples = settings["num_samples"], settings["num_examples"]
        images = torch.from_numpy(problem.load_images(settings["data_dir"]).copy())
        images = images.reshape(len(images), -1).float() / 255
        self.data = images[: problem.NUM_TRAIN].contiguous()
        self.examples = images[problem.NUM_TRAIN :][:num_examples].contiguous()
        self.observed = torch.from_numpy(problem.observed_pixels()).reshape(1, -1)
        self.networks = Networks()
        self.compiled = settings["compiled"]
        self.loss = torch.compile(self.networks.loss) if self.compiled else self.networks.loss
        log_weights = self.networks.log_weights
        self.log_weights = torch.compile(log_weights, dynamic=False) if self.compiled else log_weights
        self.optimizer: torch.optim.Optimizer | None = None
        self.chunk = 0

    def prepare(self) -> dict[str, Any]:
        """Chooses the faster Adam and the fastest chunk, and compiles where asked to."""
        once = {}
        began = time.perf_counter()
        self._use_adam("foreach")
        self._step(self.data[: self.batch_size])
        if self.compiled:
            once["compile and first step"] = time.perf_counter() - began
        took = {}
        for kind in ("foreach", "fused", "foreach", "fused"):
            self._use_adam(kind)
            self._fixed(5)
            took[kind] = min(took.get(kind, float("inf")), self._fixed(30))
        self._use_adam(min(took, key=took.get))

        rates = {}
        for chunk in sorted({min(self.num_samples, max(1, draws // len(self.examples))) for draws in CHUNKS}):
            self.chunk = chunk
            began = time.perf_counter()
            self._importance(self.chunk)
            if self.compiled:
                what = f"compile importance sampling, {chunk * len(self.examples)} draws at once"
                once[what] = time.perf_counter() - began
            samples = min(self.num_samples, 8 * self.chunk) // self.chunk * self.chunk
            rates[self.chunk] = samples / min(seconds(lambda n=samples: self._importance(n)) for _ in "12")
        self.chunk = max(rates, key=rates.get)
        chosen = f"Adam {min(took, key=took.get)}, {self.chunk * len(self.examples)} draws at once"
        return {"versions": {"torch": torch.__version__}, "once": once, "chosen": chosen}

    def _use_adam(self, kind: str) -> None:
        parameters = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, problem.LEARNING_RATE, **{kind: True})

    def _step(self, image: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(image, self.observed)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _fixed(self, steps: int) -> float:
        image = self.data[: self.batch_size].clone()
        began = time.perf_counter()
        for _ in range(steps):
            self._step(image)
        return time.perf_counter() - began

    def train(self) -> dict[str, Any]:
        """Trains for one epoch, or its first steps, shuffled anew."""
        began = time.perf_counter()
        order = torch.randperm(len(self.data))[: self.steps * self.batch_size].split(self.batch_size)
        total = torch.zeros(())
        for index in order:
            loss = self._step(self.data.index_select(0, index))
            total += loss
        total.item()
        return {"seconds": time.perf_counter() - began, "steps": len(order), "loss": loss.item()}

    def bare(self, steps: int) -> dict[str, Any]:
        """Takes steps on one and the same batch: no data work at all."""
        return {"seconds": self._fixed(steps), "steps": steps}

    def _importance(self, samples: int) -> Tensor:
        weight = 1 - self.observed
        with torch.inference_mode():
            code = self.networks.encode(self.examples, self.observed)
            chunks = [self.log_weights(code, self.examples, weight, self.chunk) for _ in range(0, samples, self.chunk)]
            return torch.cat(chunks)[:samples]

    def importance(self) -> dict[str, Any]:
        """Estimates log p(y|x) by importance sampling."""
        values = []
        took = seconds(lambda: values.append(self._importance(self.num_samples)))
        log_prob = torch.logsumexp(values[0].double(), 0) - torch.log(torch.tensor(float(self.num_samples)))
        return {"seconds": took, "draws": values[0].numel(), "log_prob": log_prob.mean().item()}


if __name__ == "__main__":
    made = Contender(settings())
    serve({"prepare": made.prepare, "train": made.train, "bare": made.bare, "importance": made.importance})
