"""Stochastic video generation (Denton and Fergus 2018) with a fixed or a learned prior, given actions or nothing.

A recurrent frame predictor, between an encoder and a decoder of frames, makes frame t of the frame before it, z_t and
the conditions of t. q(z_t) sees frames 0 to t; p(z_t) sees those before t (SVG-LP), or is N(0, I) (SVG-FP). Two ways
through time are two models. Teacher forcing gives the predictor the true frames: then p(y|x,z) is a product over time,
each frame given the true ones before it, and nothing but the LSTMs is sequential. Free running gives it its own
predictions, encoded again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax import keys
from cvae_jax.distributions import Latent, Normal, bounded_normal, draw_latent, standard_normal
from cvae_jax.task import Proposal, Train
from cvae_jax.tasks.video.frames import NETWORKS

Carry = tuple[tuple[Array, Array], ...]  # the states of LSTM cells

FIRST_LOG_SCALE = -2.3  # of pixels: a deviation of 0.1
# Adam moves every number by its learning rate at most: at 1e-3 the log scale would take 1,000 steps to change by one.
LEVER = 10


class Recurrent(nn.Module):
    """LSTM cells on each other between two Dense layers; a call takes one step of time.

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
        """Returns the state before the first step."""
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
        """Takes many steps: returns the state after them, and outputs [steps, batch, outputs].

        Args:
          carry: the state before them.
          inputs: [steps, batch, features].
        """
        if not len(inputs):  # nothing to compile a loop for
            return carry, jnp.zeros((*inputs.shape[:2], self.outputs))
        if self.is_initializing():  # a scan cannot create variables
            carry, first = self(carry, jnp.zeros(inputs.shape[1:]))
            return carry, jnp.broadcast_to(first[None], (len(inputs), *first.shape))
        steps = nn.scan(type(self).__call__, variable_broadcast="params", split_rngs={"params": False})
        return steps(self, carry, inputs)


class Encoding(NamedTuple):
    """Features of true frames and the distributions of z given them. Step t leads from frame t - 1 to frame t."""

    features: Array  # [frames, batch, features], of all frames that can come before another
    skips: list[Array]  # the decoder's part in the skips of each level, [batch, sources, ...], see `_sources`
    past: Normal  # q(z) of past steps, [steps, batch, latent]
    posterior: Normal | None  # q(z) of future steps, [steps, batch, latent]; None without y
    prior: Normal | None  # p(z) of future steps given true frames, [steps, batch, latent]; None without y
    prior_carry: Carry  # the prior network's state after the past
    condition: Array  # [steps, batch, columns]


class VideoNetworks(nn.Module):
    """The networks of SVG, for `flax_model`.

    Training that runs freely does so from the first frame on, as the papers' code does: predictions stand for the
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
      num_past: frames that are known when predicting; the last of them gives the skips.
      last_frame_skip: whether each frame's skips come from the frame before it instead.
      teacher_forcing: whether y is scored given the true frames before each; else given predictions. Training has a
        way of its own.
      precision: in which encoder and decoder compute, "float32" or "bfloat16".
      remat: whether the gradient computes their activations again: running freely then takes half the memory, while
        with teacher forcing, where all frames are one batch, nothing is saved.
      teacher_forcing_share: step -> the share of training's batches that are given true frames; None: all are.
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
    teacher_forcing_share: Callable[[Array], Array] | None = None

    def setup(self) -> None:
        encoder, decoder = NETWORKS[self.network]
        if self.remat:
            encoder, decoder = nn.remat(encoder), nn.remat(decoder, methods=("__call__", "encode_skips"))
        dtype = None if self.precision == "float32" else jnp.dtype(self.precision)
        self.encoder = encoder(self.widths, self.features, dtype)
        self.decoder = decoder(self.widths, self.channels, dtype)
        self.predictor = Recurrent(self.hidden, self.predictor_layers, self.features)
        if self.latent:
            self.recognition_net = Recurrent(self.hidden, 1, 2 * self.latent)
            if self.prior == "learned":
                self.prior_net = Recurrent(self.hidden, 1, 2 * self.latent)
        # Conditions come in their own units: a robot moves a few hundredths of a metre.
        self.standardised = nn.BatchNorm(use_scale=False, use_bias=False, momentum=0.9)
        self.log_scale = self.param("log_scale", nn.initializers.constant(FIRST_LOG_SCALE / LEVER), ())

    def encode(self, x: dict[str, Array], y: Array | None, train: Train | None) -> Encoding:
        """Returns the encoding of true frames; q(z) and p(z) of the future are known where y is.

        Args:
          x: `frames`, the past [batch, past, height, width, channels], and `condition` [batch, past + future, columns].
          y: the future, [batch, future, height, width, channels], or None.
          train: not read: the encoding is the same whatever the predictor is given.
        """
        frames = x["frames"] if y is None else jnp.concatenate([x["frames"], y], 1)
        num_past, num_frames = x["frames"].shape[1], x["condition"].shape[1]
        # Frames of an example in a row, not of a step: only so does each device keep its part of the batch.
        features, skips = self.encoder(_flat(frames))
        features = _steps(features, len(frames)).swapaxes(0, 1)
        posterior, prior, prior_carry = self._latents(features, num_past)
        # The steps of the past come first.
        past, future = slice(0, num_past - 1), slice(num_past - 1, None)
        sources, _ = self._sources(num_past, num_frames if y is not None else num_past + 1)
        chosen = [_flat(_steps(skip, len(frames))[:, jnp.array(sources)]) for skip in skips]
        training = self.is_mutable_collection("batch_stats")
        condition = x["condition"].swapaxes(0, 1)
        if condition.size:
            condition = self.standardised(condition, use_running_average=not training)
        return Encoding(
            features=features[: num_frames - 1],
            skips=[_steps(skip, len(frames)) for skip in self.decoder.encode_skips(chosen)],
            past=_part(posterior, past),
            posterior=None if y is None else _part(posterior, future),
            prior=None if y is None else _part(prior, future),
            prior_carry=prior_carry,
            condition=condition[1:],
        )

    def _sources(self, num_past: int, num_frames: int) -> tuple[list[int], list[int]]:
        """Returns the true frames that give skips, and for each future step its place among these."""
        last = max(self.num_past, num_past)
        by_step = [t - 1 if self.last_frame_skip else min(t, last) - 1 for t in range(num_past, num_frames)]
        sources = sorted(set(by_step))
        return sources, [sources.index(source) for source in by_step]

    def _latents(self, features: Array, num_past: int) -> tuple[Normal, Normal, Carry]:
        """Returns q(z) and p(z) of every step between known frames, and the prior's state after those of the past.

        Both are [steps, batch, latent]. q(z_t) sees frames up to t, p(z_t) those before.
        """
        steps, batch = len(features) - 1, features.shape[1]
        standard = standard_normal((steps, batch, self.latent))
        if not self.latent:
            return standard, standard, ()
        _, outputs = self.recognition_net.run(self.recognition_net.start(batch), features[1:])
        posterior = _gaussian(outputs)
        if self.prior == "fixed":
            return posterior, standard, ()
        carry, past = self.prior_net.run(self.prior_net.start(batch), features[: num_past - 1])
        _, future = self.prior_net.run(carry, features[num_past - 1 : -1])
        return posterior, _gaussian(jnp.concatenate([past, future])), carry

    def decode(
        self,
        encoding: Encoding,
        example_keys: Array,
        proposal: Proposal,
        z: tuple[Array, ...] | None,
        train: Train | None,
    ) -> tuple[tuple[Latent, ...], tuple[Array, Array]]:
        """Returns the latent layers of past and of future steps; and the future frames' means and log scale.

        The past steps' p is q.

        Args:
          encoding: of `encode`.
          example_keys: [batch].
          proposal: where z comes from.
          z: of each layer [batch, steps, latent], or None.
          train: tosses the coin of teacher forcing; None when measuring.
        """
        past, condition = encoding.past, encoding.condition
        num_past = len(past.mean) + 1
        step_keys = keys.per_sample(example_keys, jnp.arange(1, len(condition) + 1))
        given = [values.swapaxes(0, 1) for values in z] if z else [None, None]
        layers = []
        z_past = past.mean
        if self.latent and num_past > 1:
            past_layer = _draw_steps(past, past, step_keys[: num_past - 1], proposal, given[0])
            z_past = past_layer.z
            layers.append(past_layer)

        def forced(networks: "VideoNetworks") -> tuple[Latent, Array]:
            return networks._forced(encoding, step_keys[num_past - 1 :], proposal, given[-1], z_past)

        def free(networks: "VideoNetworks") -> tuple[Latent, Array]:
            return networks._free(encoding, step_keys[num_past - 1 :], proposal, given[-1], z_past)

        true_frames = self._gives_true_frames(train)
        if self.is_initializing():  # the free way loops, and a loop cannot create variables
            layer, frames = forced(self)
        elif isinstance(true_frames, Array):
            layer, frames = nn.cond(true_frames, forced, free, self)
        else:
            layer, frames = forced(self) if true_frames and encoding.prior is not None else free(self)
        if self.latent:
            layers.append(layer)
        return tuple(_joined(layer) for layer in layers), (frames.swapaxes(0, 1), LEVER * self.log_scale)

    def _gives_true_frames(self, train: Train | None) -> Array | bool:
        """Returns whether the predictor is given true frames; in training perhaps a coin, bool [], one for a batch."""
        if train is None:
            return self.teacher_forcing
        if self.teacher_forcing_share is None:
            return True
        return jax.random.bernoulli(jax.random.fold_in(train.keys[0], 0), self.teacher_forcing_share(train.step))

    def _forced(
        self, encoding: Encoding, step_keys: Array, proposal: Proposal, z: Array | None, z_past: Array
    ) -> tuple[Latent, Array]:
        """Returns future z and frames [future, batch, ...], given the true frames before each: all decoded at once."""
        layer = _draw_steps(encoding.prior, encoding.posterior, step_keys, proposal, z)
        inputs = [encoding.features, jnp.concatenate([z_past, layer.z]), encoding.condition]
        batch = inputs[0].shape[1]
        _, outputs = self.predictor.run(self.predictor.start(batch), jnp.concatenate(inputs, -1))
        future = nn.tanh(outputs[len(z_past) :])
        skips = [_flat(skip) for skip in self._skips_of_steps(encoding)]
        frames = self.decoder(_flat(future.swapaxes(0, 1)), skips)
        return layer, _steps(frames, batch).swapaxes(0, 1)

    def _skips_of_steps(self, encoding: Encoding) -> list[Array]:
        """Returns the skips of each level, [batch, future or 1, ...]; 1 where all future steps share one."""
        num_past, num_frames = len(encoding.past.mean) + 1, len(encoding.condition) + 1
        sources, by_step = self._sources(num_past, num_frames)
        return encoding.skips if len(sources) == 1 else [skip[:, jnp.array(by_step)] for skip in encoding.skips]

    def _free(
        self, encoding: Encoding, step_keys: Array, proposal: Proposal, z: Array | None, z_past: Array
    ) -> tuple[Latent, Array]:
        """Returns future z and frames [future, batch, ...], each given the predictions before it, encoded again."""
        features, condition = encoding.features, encoding.condition
        batch, num_past = features.shape[1], len(z_past) + 1
        past = jnp.concatenate([features[: num_past - 1], z_past, condition[: num_past - 1]], -1)
        carry, _ = self.predictor.run(self.predictor.start(batch), past)
        first_skips = [skip[:, 0] for skip in encoding.skips]
        many_skips = not self.last_frame_skip and encoding.skips[0].shape[1] > 1

        def step(networks: "VideoNetworks", state: _State, inputs: _Inputs) -> tuple[_State, tuple[Latent, Array]]:
            prior_carry, prior = networks._next_prior(state.prior_carry, state.features)
            layer = draw_latent(prior, inputs.posterior, inputs.example_keys, proposal, inputs.z)
            predictor_inputs = jnp.concatenate([state.features, layer.z, inputs.condition], -1)
            carry, outputs = networks.predictor(state.carry, predictor_inputs)
            frame = networks.decoder(nn.tanh(outputs), state.skips if inputs.skips is None else inputs.skips)
            features, new_skips = networks.encoder(frame)
            skips = list(networks.decoder.encode_skips(new_skips)) if self.last_frame_skip else state.skips
            return _State(carry, prior_carry, features, skips), (layer, frame)

        training = self.is_mutable_collection("batch_stats")
        loop = nn.scan(
            step,
            variable_broadcast="params" if training else ["params", "batch_stats"],
            variable_carry="batch_stats" if training else False,
            split_rngs={"params": False},
        )
        skips = [skip.swapaxes(0, 1) for skip in self._skips_of_steps(encoding)] if many_skips else None
        inputs = _Inputs(step_keys, condition[num_past - 1 :], encoding.posterior, z, skips)
        state = _State(carry, encoding.prior_carry, features[num_past - 1], first_skips)
        _, layer_and_frames = loop(self, state, inputs)
        return layer_and_frames

    def _next_prior(self, carry: Carry, features: Array) -> tuple[Carry, Normal]:
        """Returns the prior's state after a frame of these features, and p(z) of the step from it, [batch, latent]."""
        if self.latent and self.prior == "learned":
            carry, outputs = self.prior_net(carry, features)
            return carry, _gaussian(outputs)
        return carry, standard_normal((len(features), self.latent))


class _State(NamedTuple):
    """The state that a step of free running hands to the next."""

    carry: Carry  # of the predictor
    prior_carry: Carry
    features: Array  # of the frame before, [batch, features]
    skips: list[Array]


class _Inputs(NamedTuple):
    """Inputs of a step of free running; the loop takes them with a leading axis of steps."""

    example_keys: Array  # [batch]
    condition: Array
    posterior: Normal | None
    z: Array | None
    skips: list[Array] | None  # None: those of the state


def _flat(steps: Array) -> Array:
    """[batch, steps, ...] -> [batch * steps, ...]."""
    return steps.reshape(-1, *steps.shape[2:])


def _steps(flat: Array, batch: int) -> Array:
    """[batch * steps, ...] -> [batch, steps, ...]."""
    return flat.reshape(batch, -1, *flat.shape[1:])


def _gaussian(outputs: Array) -> Normal:
    return bounded_normal(*jnp.split(outputs, 2, -1))


def _part(distribution: Normal, steps: slice) -> Normal:
    return jax.tree.map(lambda leaf: leaf[steps], distribution)


def _draw_steps(
    prior: Normal | None, posterior: Normal | None, step_keys: Array, proposal: Proposal, z: Array | None
) -> Latent:
    """Draws the latent layer of every step: leaves [steps, batch, ...]."""
    return jax.vmap(lambda prior, posterior, keys, z: draw_latent(prior, posterior, keys, proposal, z))(
        prior, posterior, step_keys, z
    )


def _joined(steps: Latent) -> Latent:
    """Returns the steps' layers [steps, batch, ...] as one of z [batch, steps, latent]."""
    return Latent(steps.z.swapaxes(0, 1), steps.log_p_z.sum(0), steps.log_q_z.sum(0), steps.kl.swapaxes(0, 1))
