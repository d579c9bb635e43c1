"""Stochastic video generation (Denton and Fergus 2018) with a fixed or a learned prior, given actions or nothing.

Frame t is made of what the frame before it says, z_t and the conditions of t, by a recurrent frame predictor between
an encoder and a decoder of frames. q(z_t) has seen frames 0 to t; p(z_t) those before t (SVG-LP), or is N(0, I)
(SVG-FP). Two ways through time are two models. Teacher forcing gives the predictor the true frames: then p(y|x,z) is a
product over time, each frame given the true ones before it, and nothing but the LSTMs is sequential. Free running
gives it its own predictions, encoded again.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax import keys as random_keys
from cvae_jax.distributions import Latent, Normal, bounded_normal, draw_latent, standard_normal
from cvae_jax.model import Proposal
from cvae_jax.tasks.video.frames import NETWORKS

Carry = Any

FIRST_LOG_SCALE = -2.3  # of pixels: a deviation of 0.1
# Adam moves every number by its learning rate at most: at 1e-3 the log scale would take 1,000 steps to change by one.
LEVER = 10


class Recurrent(nn.Module):
    """A Dense layer, LSTM cells on each other, and a Dense layer: a step of time at a call.

    Attributes:
      width: of the cells.
      layers: how many.
      outputs: size of what it gives.
    """

    width: int
    layers: int
    outputs: int

    def setup(self) -> None:
        self.embed = nn.Dense(self.width)
        self.cells = [nn.OptimizedLSTMCell(self.width) for _ in range(self.layers)]
        self.output = nn.Dense(self.outputs)

    def start(self, batch: int) -> Carry:
        """The state before the first step."""
        zero = jnp.zeros((batch, self.width))
        return tuple((zero, zero) for _ in range(self.layers))

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        hidden = self.embed(inputs)
        after = []
        for cell, state in zip(self.cells, carry, strict=True):
            state, hidden = cell(state, hidden)
            after.append(state)
        return tuple(after), self.output(hidden)

    def run(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Many steps: inputs [steps, batch, features] -> the state after them, and outputs [steps, batch, outputs]."""
        if not len(inputs):  # nothing to compile a loop for
            return carry, jnp.zeros((*inputs.shape[:2], self.outputs))
        if self.is_initializing():  # a scan cannot create variables
            carry, first = self(carry, jnp.zeros(inputs.shape[1:]))
            return carry, jnp.broadcast_to(first[None], (len(inputs), *first.shape))
        steps = nn.scan(type(self).__call__, variable_broadcast="params", split_rngs={"params": False})
        return steps(self, carry, inputs)


class VideoNetworks(nn.Module):
    """The networks of SVG, for `make_model`.

    Where training runs freely it does so from the first frame on, as the papers' code does: predictions stand for the
    other past frames too, which are known when predicting.

    Attributes:
      network: of frames, "dcgan" or "vgg".
      widths: channels of each level of it.
      channels: of a frame.
      features: of an encoded frame.
      latent: size of each z_t; 0 for a deterministic network, without recognition or prior network.
      prior: "fixed" or "learned".
      hidden: width of the LSTM cells.
      predictor_layers: LSTM cells of the frame predictor.
      num_past: frames that are known when predicting, the last of which gives the skips.
      last_frame_skip: whether each frame's skips come from the frame before it instead.
      teacher_forcing: whether y is scored given the true frames before each; else given predictions.
      precision: in which encoder and decoder compute, "float32" or "bfloat16".
      remat: whether the gradient computes their activations again: running freely then takes half the memory, while
        with teacher forcing, where all frames are one batch, nothing is saved.
    """

    network: str
    widths: Sequence[int]
    channels: int
    features: int
    latent: int
    prior: str
    hidden: int
    predictor_layers: int
    num_past: int
    last_frame_skip: bool
    teacher_forcing: bool
    precision: str = "float32"
    remat: bool = False

    def setup(self) -> None:
        encoder, decoder = NETWORKS[self.network]
        if self.remat:
            encoder, decoder = nn.remat(encoder), nn.remat(decoder, methods=("__call__", "of_skips"))
        dtype = None if self.precision == "float32" else jnp.dtype(self.precision)
        self.encoder = encoder(self.widths, self.features, dtype)
        self.decoder = decoder(self.widths, self.channels, dtype)
        self.predictor = Recurrent(self.hidden, self.predictor_layers, self.features)
        if self.latent:
            self.recognition_net = Recurrent(self.hidden, 1, 2 * self.latent)
            if self.prior == "learned":
                self.prior_net = Recurrent(self.hidden, 1, 2 * self.latent)
        # Conditions come in units of their own, such as metres of which a robot moves a few hundredths.
        self.standardised = nn.BatchNorm(use_scale=False, use_bias=False, momentum=0.9)
        self.log_scale = self.param("log_scale", nn.initializers.constant(FIRST_LOG_SCALE / LEVER), ())

    def encode(self, x: dict[str, Any], y: Array | None) -> dict[str, Any]:
        """What true frames say: their features and skips, q(z), and p(z) given true frames.

        Args:
          x: `frames`, the past [batch, past, height, width, channels]; `condition` [batch, past + future, columns];
            `coin`, a bool [] where training tosses one: whether the predictor is given true frames. None: it is in
            training, and else as `teacher_forcing` says.
          y: the future, [batch, future, height, width, channels], or None.

        Returns:
          `features` [frames, batch, features] of all frames that can come before another; `skips`, of each level what
          the decoder makes of them, [batch, sources, ...], see `_sources`; `past`, q(z) of past steps, and of future
          ones `posterior` and `prior`, p(z) given true frames, [steps, batch, latent], None without y; `prior_carry`,
          the prior network's state after the past; `condition` [steps, batch, columns]; `coin`.
        """
        frames = x["frames"] if y is None else jnp.concatenate([x["frames"], y], 1)
        num_past, num_frames = x["frames"].shape[1], x["condition"].shape[1]
        # Frames of an example in a row, not of a step: only so does each device keep its part of the batch.
        features, skips = self.encoder(_flat(frames))
        features = _steps(features, len(frames)).swapaxes(0, 1)
        posterior, prior, prior_carry = self._latents(features, num_past)
        # Step t leads from frame t - 1 to frame t; those of the past come first.
        past, future = slice(0, num_past - 1), slice(num_past - 1, None)
        sources, _ = self._sources(num_past, num_frames if y is not None else num_past + 1)
        chosen = [_flat(_steps(skip, len(frames))[:, jnp.array(sources)]) for skip in skips]
        training = self.is_mutable_collection("batch_stats")
        condition = x["condition"].swapaxes(0, 1)
        if condition.size:
            condition = self.standardised(condition, use_running_average=not training)
        of_skips = [_steps(one, len(frames)) for one in self.decoder.of_skips(chosen)]
        return {
            "features": features[: num_frames - 1],
            "skips": of_skips,
            "past": _part(posterior, past),
            "posterior": None if y is None else _part(posterior, future),
            "prior": None if y is None else _part(prior, future),
            "prior_carry": prior_carry,
            "condition": condition[1:],
            "coin": x["coin"],
        }

    def _sources(self, num_past: int, num_frames: int) -> tuple[list[int], list[int]]:
        """The true frames that give skips, and for each future step which of these."""
        last = max(self.num_past, num_past)
        each = [t - 1 if self.last_frame_skip else min(t, last) - 1 for t in range(num_past, num_frames)]
        sources = sorted(set(each))
        return sources, [sources.index(source) for source in each]

    def _latents(self, features: Array, num_past: int) -> tuple[Normal, Normal, Carry]:
        """q(z) and p(z) of every step between known frames, [steps, batch, latent]; the prior's state after the past's.

        q(z_t) sees frames up to t, p(z_t) those before.
        """
        steps, batch = len(features) - 1, features.shape[1]
        standard = standard_normal((steps, batch, self.latent))
        if not self.latent:
            return standard, standard, ()
        _, told = self.recognition_net.run(self.recognition_net.start(batch), features[1:])
        posterior = _gaussian(told)
        if self.prior == "fixed":
            return posterior, standard, ()
        carry, of_past = self.prior_net.run(self.prior_net.start(batch), features[: num_past - 1])
        _, of_future = self.prior_net.run(carry, features[num_past - 1 : -1])
        return posterior, _gaussian(jnp.concatenate([of_past, of_future])), carry

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array, ...] | None
    ) -> tuple[tuple[Latent, ...], tuple[Array, Array]]:
        """The z of past steps, whose p is q, and of future steps; the future frames' means and log scale."""
        past, condition = encoding["past"], encoding["condition"]
        num_past = len(past.mean) + 1
        step_keys = random_keys.per_sample(keys, jnp.arange(1, len(condition) + 1))
        given = [one.swapaxes(0, 1) for one in z] if z else [None, None]
        units = []
        z_past = past.mean
        if self.latent and num_past > 1:
            of_past = _draw_steps(past, past, step_keys[: num_past - 1], proposal, given[0])
            z_past = of_past.z
            units.append(of_past)

        def forced(networks: "VideoNetworks") -> tuple[Latent, Array]:
            return networks._forced(encoding, step_keys[num_past - 1 :], proposal, given[-1], z_past)

        def free(networks: "VideoNetworks") -> tuple[Latent, Array]:
            return networks._free(encoding, step_keys[num_past - 1 :], proposal, given[-1], z_past)

        if self.is_initializing():  # the free way loops, and a loop cannot create variables
            unit, frames = forced(self)
        elif encoding["coin"] is not None:
            unit, frames = nn.cond(encoding["coin"], forced, free, self)
        else:
            given_truth = self.is_mutable_collection("batch_stats") or self.teacher_forcing
            unit, frames = forced(self) if given_truth and encoding["prior"] is not None else free(self)
        if self.latent:
            units.append(unit)
        return tuple(_whole(one) for one in units), (frames.swapaxes(0, 1), LEVER * self.log_scale)

    def _forced(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: Array | None, z_past: Array
    ) -> tuple[Latent, Array]:
        """Future z and frames [future, batch, ...], each given the true frames before it: all decoded at once."""
        unit = _draw_steps(encoding["prior"], encoding["posterior"], keys, proposal, z)
        inputs = [encoding["features"], jnp.concatenate([z_past, unit.z]), encoding["condition"]]
        batch = inputs[0].shape[1]
        _, outputs = self.predictor.run(self.predictor.start(batch), jnp.concatenate(inputs, -1))
        future = nn.tanh(outputs[len(z_past) :])
        skips = [_flat(one) for one in self._skips_of_steps(encoding)]
        frames = self.decoder(_flat(future.swapaxes(0, 1)), skips)
        return unit, _steps(frames, batch).swapaxes(0, 1)

    def _skips_of_steps(self, encoding: dict[str, Any]) -> list[Array]:
        """[batch, future or 1, ...] of each level; 1 where all future steps share one."""
        num_past, num_frames = len(encoding["past"].mean) + 1, len(encoding["condition"]) + 1
        sources, each = self._sources(num_past, num_frames)
        return encoding["skips"] if len(sources) == 1 else [one[:, jnp.array(each)] for one in encoding["skips"]]

    def _free(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: Array | None, z_past: Array
    ) -> tuple[Latent, Array]:
        """Future z and frames [future, batch, ...], each given the predictions before it, encoded again."""
        features, condition, posterior = encoding["features"], encoding["condition"], encoding["posterior"]
        batch, num_past = features.shape[1], len(z_past) + 1
        of_past = jnp.concatenate([features[: num_past - 1], z_past, condition[: num_past - 1]], -1)
        carry, _ = self.predictor.run(self.predictor.start(batch), of_past)
        first_skips = [one[:, 0] for one in encoding["skips"]]
        own_skips = not self.last_frame_skip and encoding["skips"][0].shape[1] > 1

        def step(networks: "VideoNetworks", state: Any, inputs: Any) -> tuple[Any, tuple[Latent, Array]]:
            carry, prior_carry, features, skips = state
            keys, condition, posterior, given, own = inputs
            prior_carry, prior = networks._next_prior(prior_carry, features)
            unit = draw_latent(prior, posterior, keys, proposal, given)
            carry, outputs = networks.predictor(carry, jnp.concatenate([features, unit.z, condition], -1))
            frame = networks.decoder(nn.tanh(outputs), own if own_skips else skips)
            features, after = networks.encoder(frame)
            if self.last_frame_skip:
                skips = list(networks.decoder.of_skips(after))
            return (carry, prior_carry, features, skips), (unit, frame)

        training = self.is_mutable_collection("batch_stats")
        loop = nn.scan(
            step,
            variable_broadcast="params" if training else ["params", "batch_stats"],
            variable_carry="batch_stats" if training else False,
            split_rngs={"params": False},
        )
        own = [one.swapaxes(0, 1) for one in self._skips_of_steps(encoding)] if own_skips else None
        inputs = (keys, condition[num_past - 1 :], posterior, z, own)
        state = (carry, encoding["prior_carry"], features[num_past - 1], first_skips)
        _, found = loop(self, state, inputs)
        return found

    def _next_prior(self, carry: Carry, features: Array) -> tuple[Carry, Normal]:
        """p(z) of the step from the frame of these features, [batch, latent]."""
        if self.latent and self.prior == "learned":
            carry, told = self.prior_net(carry, features)
            return carry, _gaussian(told)
        return carry, standard_normal((len(features), self.latent))


def _flat(steps: Array) -> Array:
    """[batch, steps, ...] -> [batch * steps, ...]."""
    return steps.reshape(-1, *steps.shape[2:])


def _steps(flat: Array, batch: int) -> Array:
    """[batch * steps, ...] -> [batch, steps, ...]."""
    return flat.reshape(batch, -1, *flat.shape[1:])


def _gaussian(told: Array) -> Normal:
    return bounded_normal(*jnp.split(told, 2, -1))


def _part(distribution: Normal, steps: slice) -> Normal:
    return jax.tree.map(lambda leaf: leaf[steps], distribution)


def _draw_steps(prior: Normal, posterior: Normal | None, keys: Array, proposal: Proposal, z: Array | None) -> Latent:
    """`draw_latent` for every step: leaves [steps, batch, ...]."""
    return jax.vmap(lambda prior, posterior, keys, z: draw_latent(prior, posterior, keys, proposal, z))(
        prior, posterior, keys, z
    )


def _whole(steps: Latent) -> Latent:
    """The steps' units [steps, batch, ...] as one of z [batch, steps, latent]."""
    return Latent(steps.z.swapaxes(0, 1), steps.log_p_z.sum(0), steps.log_q_z.sum(0), steps.kl.swapaxes(0, 1))
