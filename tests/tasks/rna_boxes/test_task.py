import json
from functools import partial

import contract
import jax
import jax.numpy as jnp
import kill
import numpy as np
import pytest
from contract import moved
from rna_sets import MODELS, small
from scipy import special
from specs import load, task_of

import cvae_jax
from cvae_jax import evaluation, inference, keys, objectives
from cvae_jax.data import batches, buckets
from cvae_jax.distributions import Bernoulli, Categorical, Joint
from cvae_jax.errors import UserError
from cvae_jax.evaluation.measure import joined_rows
from cvae_jax.inference import ais, diagnostics
from cvae_jax.inference.estimators import importance_score, log_mean_exp, per_target
from cvae_jax.model import Draw, Train
from cvae_jax.tasks.rna_boxes import boxes, folding, metrics, prediction
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes import files as rna_files
from cvae_jax.tasks.rna_boxes.ensemble import ensemble
from cvae_jax.tasks.rna_boxes.pairs import ConvTower, fold, unfold, unfold_first, upper
from cvae_jax.tasks.rna_boxes.task import SHADES, training_weights, weights
from cvae_jax.training import log, step

SEQUENCES = ["GGGAAAACCC", "GGCGAAAGCAAC", "GAGAAAAUCACU"]
STRUCTURES = ["(((....)))", "((.(...)))..", ".((....))..."]


def fitted_of(task, variables, batch):
    """The task's model with these variables, as training leaves it."""
    return objectives.fitted(task.stages[0], {**variables, "frozen": {}}, batch)


def model_of(name, x=SEQUENCES, y=STRUCTURES, **changes):
    task = task_of(small(name, **changes))
    batch = task.from_user(x, y)
    variables = jax.jit(task.stages[0].model.init)(jax.random.key(0), batch, {})
    return fitted_of(task, gentle(moved(variables)), batch), batch


def gentle(variables):
    """With outputs that depend on z a little only: hundreds of pixels tell so much of it that no sample would fit."""
    touched = ("generation_z", "generation_scale", "recognition_out")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (0.03 if any(name in jax.tree_util.keystr(path) for name in touched) else 1),
        variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    contract.check_model(*model_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS])
def test_log_likelihood_against_numpy(name):
    """Every pixel i < j counts once, and where and how large boxes are only inside of them."""
    fitted, batch = model_of(name)
    drawn = contract.draw(contract.richest(fitted, batch), fitted, batch)
    p_y = {head: np.asarray(unfold(p.logits[:, 0], 1), np.float64) for head, p in drawn.p_y.heads.items()}
    for row, (sequence, structure) in enumerate(zip(SEQUENCES, STRUCTURES, strict=True)):
        rows = boxes.boxes_of(boxes.parse(structure)[0])
        wanted = {head: np.asarray(values) for head, values in boxes.targets(jnp.asarray(rows), 12).items()}
        total = 0.0
        for i in range(len(sequence)):
            for j in range(i + 1, len(sequence)):
                on, logits = wanted["on"][i, j], p_y["on"][row, i, j]
                total += special.log_expit(np.where(on, logits, -logits)).sum()
                for head, kinds in (("location", (0, 0, 1, 1, 2, 2)), ("size", (0, 1, 1, 2))):
                    for output, kind in enumerate(kinds):
                        if on[kind]:
                            right = wanted[head][i, j, output]
                            total += special.log_softmax(p_y[head][row, i, j, output])[right]
        np.testing.assert_allclose(drawn.log_p_y[row].sum(), total, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS])
def test_a_longer_bucket_changes_nothing(name):
    """Padding counts nowhere: not in log p(y|x,z), not in the densities of z, not in the KL."""
    fitted, batch = model_of(name)
    longer = task_of(small(name, buckets=())).from_user(SEQUENCES, STRUCTURES)
    assert (batch.x["sequence"].shape[1], longer.x["sequence"].shape[1]) == (12, 16)
    short, long = (contract.draw("prior_mean", fitted, padded) for padded in (batch, longer))
    for of in (
        lambda draw: draw.log_p_y.reshape(3, -1).sum(1),
        lambda draw: jnp.nan_to_num(draw.log_p_z).reshape(3, -1).sum(1),
        lambda draw: jnp.nan_to_num(draw.log_q_z).reshape(3, -1).sum(1),
        lambda draw: sum(leaf.reshape(3, -1).sum(1) for leaf in jax.tree.leaves(draw.kl)) + jnp.zeros(3),
    ):
        np.testing.assert_allclose(of(short), of(long), rtol=1e-4, atol=1e-4)


def batch_of_several(name, number=3, count=None):
    """The task of one of MODELS, some sequences, a training batch with several structures of each, and a model."""
    task = task_of(small(name, structures=number))
    arrays = rna_files.fit(rna.make(12, 10, 12, 4, seed=0)["train"], 16, 4)
    raw = {name: jnp.asarray(arrays[name][:count]) for name in task.raw}
    ids = jnp.arange(len(raw["length"]))
    example_keys = keys.per_example(jax.random.key(0), ids)
    batch = jax.jit(task.batch)(raw, ids, jnp.ones(len(ids)), example_keys, jnp.array(0))
    variables = moved(jax.jit(task.stages[0].model.init)(jax.random.key(0), batch, {}))
    return task, raw, batch, fitted_of(task, variables, batch)


def alone_in(batch, number):
    """The batch with that structure of each sequence alone."""
    y, weight = jax.tree.map(
        lambda leaf: leaf[:, number : number + 1] if leaf.shape[1] > 1 else leaf, (batch.y, batch.weight)
    )
    return batch._replace(y=y, weight=weight, num_targets=jnp.sign(batch.num_targets))


def test_the_arrays_come_before_the_task():
    config = small("none")
    task, splits = load(config)
    for split, arrays in rna.load(config.data).items():
        assert {name: (array.shape[1:], array.dtype) for name, array in arrays.items()} == {
            name: (of.shape, of.dtype) for name, of in task.raw.items()
        }
        for name, array in arrays.items():
            np.testing.assert_array_equal(splits[split][name], array)
    assert list(splits) == ["train", "valid", "test"] and task.buckets.limits == (12, 16)


@pytest.mark.slow
def test_what_training_draws_and_measuring_does_not():
    """Measuring takes the first structure, training draws some anew at each step; a row of padding holds none."""
    task = task_of(small("none", structures=5))
    arrays = rna_files.fit(rna.make(12, 10, 12, 4, seed=0)["train"], 16, 4)
    raw = {name: jnp.asarray(arrays[name][:4]) for name in task.raw}
    ids, live = jnp.arange(4), jnp.array([1.0, 1.0, 1.0, 0.0])
    make = jax.jit(task.batch)
    measured = make(raw, ids, live, keys.unused(ids), None)
    np.testing.assert_array_equal(measured.num_targets, live)
    first = np.asarray(boxes.targets(raw["boxes"][:, 0], 16)["on"])
    np.testing.assert_array_equal(unfold_first(measured.y)["on"], first)
    taken = jnp.array(0)
    drawn = [make(raw, ids, live, keys.per_example(jax.random.key(seed), ids), taken) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0].num_targets, 5 * live)
    assert drawn[0].y["on"].shape == (4, 5, 8, 16, 3)
    np.testing.assert_array_equal(drawn[0].y["on"], drawn[1].y["on"])
    assert (drawn[0].y["on"] != drawn[2].y["on"]).any()
    single = {**raw, "count": jnp.ones(4, jnp.int32)}  # all that there is to draw from
    alike = make(single, ids, live, keys.per_example(jax.random.key(0), ids), taken)
    np.testing.assert_array_equal(alike.y["on"], np.repeat(np.asarray(measured.y["on"]), 5, 1))


@pytest.mark.slow
def test_structures_of_one_sequence_are_factors():
    """Each structure of a batch has the densities that it has by itself, and the batch counts them all."""
    _, raw, batch, fitted = batch_of_several("global, learned")
    count = len(batch.ids)
    np.testing.assert_array_equal(batch.num_targets, 3)
    together = contract.draw("prior_mean", fitted, batch)
    assert together.log_p_y.shape == (count, 3) and together.kl[0].shape == (count, 3, 3)
    for number in range(3):
        alone = contract.draw("prior_mean", fitted, alone_in(batch, number))
        np.testing.assert_allclose(alone.log_p_y[:, 0], together.log_p_y[:, number], rtol=1e-5)
        np.testing.assert_allclose(alone.kl[0][:, 0], together.kl[0][:, number], rtol=1e-4, atol=1e-5)
    # They are among the sequence's own four.
    own = np.asarray(boxes.targets(raw["boxes"], 16)["on"])
    for row in range(count):
        for number in range(3):
            seen = np.asarray(unfold(batch.y["on"][row, number], 0))
            assert any((seen == dense).all() for dense in own[row, : int(raw["count"][row])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "global, learned", "pixel, fixed"])
def test_the_loss_of_several_structures_is_the_mean_of_theirs(name):
    task, _, batch, fitted = batch_of_several(name, count=4)
    batch = batch._replace(num_targets=batch.num_targets * jnp.array([1.0, 1.0, 1.0, 0.0]))  # the last is padding

    @jax.jit
    def terms_of(batch):
        draw_keys = keys.per_example(jax.random.key(0), batch.ids)
        return step.loss_fn(task.stages[0], fitted.variables, batch, draw_keys, None)[1][0]

    together, alone = terms_of(batch), [terms_of(alone_in(batch, number)) for number in range(3)]
    # What depends on z is drawn for each structure: only the analytic KL is the same to the last digits.
    for term in together if name == "none" else ["kl"]:
        np.testing.assert_allclose(together[term], np.mean([terms[term] for terms in alone]), rtol=1e-5)
    live = jax.tree.map(lambda leaf: leaf[:3], batch)
    for term, value in terms_of(live).items():
        np.testing.assert_allclose(together[term], value, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global, learned", "pixel, fixed"])
def test_estimates_of_several_structures_are_those_of_each_alone(name):
    """Of the same z: each structure's share of the estimate is the estimate of that structure by itself."""
    _, _, batch, fitted = batch_of_several(name, count=4)
    key, num_samples = jax.random.key(3), 20
    estimate = inference.log_prob(fitted, batch, "is", num_samples, key)
    (z,) = inference.scores(fitted, batch, "recognition", z_of, num_samples, key)
    by_structure = []
    for number in range(3):
        alone = alone_in(batch, number)
        encoding, unused = fitted.encode(alone), keys.unused(alone.ids)

        @jax.jit
        def log_weights(z, encoding=encoding, unused=unused):
            return importance_score(fitted.draw(encoding, unused, "given", (z,)))

        with jax.default_matmul_precision("highest"):
            by_structure.append(log_mean_exp(np.stack([log_weights(row) for row in z[:, :, number : number + 1]])))
    assert estimate.per_factor.shape == (4, 3)
    for number, own in enumerate(by_structure):
        assert own.per_factor.shape == (4, 1)
        np.testing.assert_allclose(estimate.per_factor[:, number], own.value, rtol=1e-5)
    np.testing.assert_allclose(estimate.value, np.sum([own.value for own in by_structure], 0), rtol=1e-5)
    # An evaluation tells the mean of them.
    of_target = per_target(estimate, batch.num_targets)
    np.testing.assert_allclose(of_target.value, np.mean([own.value for own in by_structure], 0), rtol=1e-5)


def z_of(draw):
    return draw.z


@pytest.mark.slow
def test_the_exact_likelihood_of_several_structures_is_the_sum_of_theirs():
    _, _, batch, fitted = batch_of_several("none", count=4)
    assert fitted.exact
    alone = [inference.exact(fitted, alone_in(batch, number)).value for number in range(3)]
    np.testing.assert_allclose(inference.exact(fitted, batch).value, np.sum(alone, 0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global, learned", "pixel, learned"])
def test_several_structures_are_recognised_where_one_or_none_was_encoded(name):
    _, _, batch, fitted = batch_of_several(name, count=4)
    example_keys = keys.per_example(jax.random.key(0), batch.ids)

    @partial(jax.jit, static_argnums=1)
    def draw(encoding, proposal):
        return fitted.draw(encoding, example_keys, proposal)

    encodings = [fitted.encode(batch)]
    for known in (alone_in(batch, 0), batch._replace(y=None)):
        encodings.append(fitted.model.recognise(fitted.variables, fitted.encode(known), batch.y))
    for proposal in ("recognition", "prior", "prior_mean"):
        wanted, *drawn = (draw(encoding, proposal) for encoding in encodings)
        z = wanted.z[0]
        assert z.shape[:2] == wanted.log_p_z.shape[:2] == (4, 3)  # each structure has a z of its own
        assert (np.asarray(z[:, 0] == z[:, 1]).all()) == (proposal == "prior_mean")
        for again in drawn:
            # The weights are those of the batch that is encoded: densities of y are not compared.
            for values in ("z", "log_p_z", "log_q_z", "kl", "p_y"):
                contract.assert_close(getattr(again, values), getattr(wanted, values))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixel, fixed", "pixel, learned"])
def test_padding_has_no_z(name):
    """z is 0 there with certainty, wherever it comes from."""
    fitted, batch = model_of(name)
    inside = np.arange(12) < np.asarray(batch.x["length"])[:, None]
    live = np.asarray(fold(upper(jnp.asarray(inside)), 1))[:, None]
    assert not live.all() and live.any()
    given = (jnp.ones((3, 1, 6, 12, 3)),)
    for proposal in ("recognition", "recognition_mean", "prior", "prior_mean", "given"):
        drawn = contract.draw(proposal, fitted, batch, given if proposal == "given" else None)
        for values in (drawn.z[0], drawn.log_p_z, drawn.log_q_z, drawn.kl[0]):
            assert not np.asarray(values)[~live].any()
        assert np.asarray(drawn.log_p_z)[live].all()
        if proposal == "given":
            assert (np.asarray(drawn.z[0])[live] == 1).all()


@pytest.mark.slow
def test_latent_codes_are_of_structures_and_never_of_pixels():
    _, _, batch, fitted = batch_of_several("global, learned", count=4)
    code = diagnostics.latent_code(fitted, batch, jax.random.key(0))
    assert {values.shape for values in code} == {(4, 3, 3)}
    kl = contract.draw("recognition_mean", fitted, batch).kl[0]
    np.testing.assert_allclose(code.kl, kl, rtol=1e-4, atol=1e-6)
    _, _, batch, fitted = batch_of_several("pixel, fixed", count=4)
    assert diagnostics.latent_code(fitted, batch, jax.random.key(0)) is None


@pytest.mark.slow
def test_batch_statistics_follow_training_and_stay_in_validation():
    fitted, batch = model_of("pixel, learned")
    variables = fitted.variables
    before = variables["batch_stats"]
    task = task_of(small("pixel, learned"))
    ids = batch.ids
    train = Train(keys.per_example(jax.random.key(1), ids), jnp.int32(0))
    _, (_, updates) = step.loss_fn(task.stages[0], variables, batch, keys.unused(ids), train)
    inside = jnp.arange(12)[None] < batch.x["length"][:, None]
    tower = ConvTower((8,), 3)
    own = {name: tree["of_pairs"] for name, tree in variables.items() if name != "frozen"}
    letters = jax.nn.one_hot(batch.x["sequence"] - 1, 4)
    _, wanted = tower.apply(own, letters, inside, mutable=["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        updates["batch_stats"]["of_pairs"],
        wanted["batch_stats"],
    )
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(before)
    _, (_, updates) = step.loss_fn(task.stages[0], variables, batch, keys.unused(ids), None)
    assert not jax.tree.leaves(updates)


@pytest.mark.slow
def test_training_weights_against_numpy():
    rows = jnp.asarray(boxes.boxes_of(boxes.parse("((((....))))" + 28 * ".")[0]))[None, None]
    y = boxes.targets(rows, 40)
    y["on"] = y["on"].astype(jnp.float32)
    live = upper(jnp.arange(40)[None] < 38).astype(jnp.float32)
    on = np.asarray(y["on"][0, 0])
    plain = weights(y, live)
    np.testing.assert_array_equal(plain["on"][0, 0, ..., 0], live[0])
    np.testing.assert_array_equal(plain["size"][0, 0], on[..., [0, 1, 1, 2]])
    assert not plain["scalar"].any()
    soft = training_weights(y, live, 0.25, False)
    for kind in range(3):
        inside = np.argwhere(on[..., kind])
        for i, j in np.ndindex(40, 40):
            near = len(inside) > 0 and (np.abs(inside - [i, j]).max(1) <= 10).any()
            assert soft["on"][0, 0, i, j, kind] == live[0, i, j] * (1 if near else 0.25)
    np.testing.assert_array_equal(soft["scalar"], soft["size"])
    # Each head is the mean of its elements, times the number of valid pixels.
    normal = training_weights(y, live, 1.0, True)
    np.testing.assert_allclose(normal["on"].sum() * 3, live.sum(), rtol=1e-5)
    for name in ("location", "size", "scalar"):
        np.testing.assert_allclose(normal[name].sum(), live.sum(), rtol=1e-5)


def certain(rows, side):
    """A draw whose likelihood is certain of these boxes, int [k, 5]."""
    y = boxes.targets(jnp.asarray(rows)[None, None], side)
    one_hot = {name: jax.nn.one_hot(y[name], classes) for name, classes in (("location", 12), ("size", 11))}
    heads = {name: Categorical(100 * fold(hot, 2)) for name, hot in one_hot.items()}
    heads["on"] = Bernoulli(fold(200 * y["on"].astype(jnp.float32) - 100, 2))
    return Draw((), None, jnp.zeros(1), jnp.zeros(1), (), Joint(heads))


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure",
    [
        "((((..((...))..))))....",
        "((.((....)).))...((...))",
        ".(((...((((....)))).))).",
        "((..(..((...))..)..))...",  # two internal loops share a pixel
        "((((..............))))..",  # a hairpin of 16, beyond the classes of sizes
    ],
)
def test_boxes_and_pairs_of_a_certain_model_are_the_truth(structure):
    pairs = boxes.parse(structure)[0]
    rows, side = boxes.boxes_of(pairs), len(structure) + len(structure) % 2
    answers = prediction.answers(certain(rows, side))
    assert boxes.shared_pixels(rows) == (structure == "((..(..((...))..)..))...")
    merged = folding.merge(np.asarray(answers["codes"]), np.asarray(answers["votes"]), side)
    assert {tuple(box) for box in merged.boxes.tolist()} == {tuple(box) for box in rows.tolist()}
    # The share of a box's pixels that name it: they know its corner, and lie in no box of the type before it.
    taken, wanted = set(), {}
    for kind, x0, y0, wx, wy in rows.tolist():
        own = {(kind, i, j) for i in range(x0, x0 + wx) for j in range(max(y0, i + 1), y0 + wy)}
        near = {pixel for pixel in own if pixel[1] - x0 <= boxes.FAR and y0 + wy - 1 - pixel[2] <= boxes.FAR}
        wanted[kind, x0, y0, wx, wy] = len(near - taken) / len(own)
        taken |= own
    for box, probability in zip(merged.boxes.tolist(), merged.probability, strict=True):
        assert probability == pytest.approx(wanted[tuple(box)], abs=1e-5)
    assert {tuple(pair) for pair in np.argwhere(answers["pairs"][0] > 0.5).tolist()} == {
        tuple(p) for p in pairs.tolist()
    }
    np.testing.assert_array_equal(folding.assemble(*merged, len(structure)), pairs)


@pytest.mark.slow
def test_metrics_of_a_model_and_of_baselines():
    fitted, batch = model_of("global, learned")
    task = task_of(small("global, learned", measure_samples=6))
    measured = metrics.measure(fitted, batch, jax.random.key(0), 6)
    for name, metric in measured.items():
        assert len(metric.values) == 3, name
        assert (metric.values.ndim == 2) == (metric.pool is not None) == (name in metrics.POOL), name
        assert metric.perfect == metrics.PERFECT.get(name) and not metric.step, name
    assert set(metrics.POOL) < set(measured) and set(metrics.PERFECT) < set(measured)
    by_task = task.metrics(fitted, batch, jax.random.key(0))
    for name, metric in measured.items():
        np.testing.assert_array_equal(by_task[name].values, metric.values)
    exact = [ensemble(sequence).probabilities for sequence in SEQUENCES]
    baselines = task.baselines(batch)
    mfe = baselines["MFE of ViennaRNA"]
    assert set(mfe) < set(measured)
    matrices = []
    for sequence in SEQUENCES:
        matrices.append(np.zeros((len(sequence), len(sequence))))
        for i, j in ensemble(sequence).mfe:
            matrices[-1][i, j] = 1
    a, b = (np.concatenate([matrix[np.triu_indices(len(matrix), 1)] for matrix in some]) for some in (matrices, exact))

    def pooled(name):
        return mfe[name].pool(mfe[name].values.sum(0))

    assert pooled(metrics.CORRELATION) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pooled(metrics.ERROR) == pytest.approx(np.abs(a - b).mean())
    drawn = next(values for name, values in baselines.items() if "samples" in name)
    assert (drawn[metrics.GED.format("mean y")].values < 0.1).all()


@pytest.mark.slow
def test_padding_is_left_out_of_predictions_and_metrics():
    fitted, batch = model_of("global, learned")
    key = jax.random.key(0)
    # As batches of a split are filled up: with the last example.
    padded = jax.tree.map(lambda leaf: leaf[jnp.array([0, 1, 2, 2])], batch)
    padded = padded._replace(num_targets=jnp.array([1.0, 1.0, 1.0, 0.0]))
    predictions = list(prediction.predictions(fitted, padded, key, 4))
    assert [predicted.sequence for predicted in predictions] == SEQUENCES
    for predicted, wanted in zip(predictions, prediction.predictions(fitted, batch, key, 4), strict=True):
        np.testing.assert_array_equal(predicted.probabilities, wanted.probabilities)
        assert len(predicted.structures) == 4 and predicted.probabilities.shape == (len(predicted.sequence),) * 2
    wanted = metrics.measure(fitted, batch, key, 4)
    for name, metric in metrics.measure(fitted, padded, key, 4).items():
        np.testing.assert_array_equal(metric.values, wanted[name].values)
    wanted = metrics.baselines(batch)
    for baseline, measured in metrics.baselines(padded).items():
        for name, metric in measured.items():
            np.testing.assert_array_equal(metric.values, wanted[baseline][name].values)


@pytest.mark.slow
def test_a_model_without_z_is_drawn_from_once():
    fitted, batch = model_of("none")
    for predicted in prediction.predictions(fitted, batch, jax.random.key(0), 7):
        assert len(predicted.structures) == 1
        np.testing.assert_array_equal(predicted.structures[0], predicted.pairs)


@pytest.mark.slow
def test_figures_of_the_longest_sequence(tmp_path):
    fitted, batch = model_of("global, learned")
    task = task_of(small("global, learned", measure_samples=4))
    plots = task.figures(fitted, batch, jax.random.key(0))
    assert set(plots) == {"matrix", "arcs"}
    for name, plot in plots.items():
        plot(tmp_path / f"{name}.png", "a title")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_grid_of_samples():
    task = task_of(small("global, learned"))
    batch = task.from_user(SEQUENCES[:2], STRUCTURES[:2])  # of 10 and of 12 bases
    rng = np.random.default_rng(0)
    samples = {"on": jnp.asarray(rng.uniform(size=(2, *batch.y["on"].shape)), jnp.float32)}
    columns = task.sample_grid(batch, {"cvae": samples}).columns
    assert list(columns) == ["truth", "given z 1", "given z 2"]
    assert {column.shape for column in columns.values()} == {(2, 12, 12)}
    assert list(task.sample_grid(batch._replace(y=None), {"cvae": {"on": samples["on"][:1]}}).columns) == ["prediction"]
    dense = np.stack([boxes.targets(jnp.asarray(boxes.boxes_of(boxes.parse(s)[0])), 12)["on"] for s in STRUCTURES[:2]])
    wanted = (dense * SHADES).max(-1)
    np.testing.assert_allclose(columns["truth"][1], wanted[1], rtol=1e-6)
    # The shorter is shown as large as the longer: its pixels are repeated, and its padding is not shown.
    places = np.arange(12) * 10 // 12
    np.testing.assert_allclose(columns["truth"][0], wanted[0][np.ix_(places, places)], rtol=1e-6)
    for number in range(2):
        shades = (np.asarray(unfold(samples["on"][number, 1, 0], 0)) * SHADES).max(-1)
        np.testing.assert_allclose(columns[f"given z {number + 1}"][1], shades, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (["GGGAAXACCC"], None, "'X' at position 6"),
        (["G" * 17], None, "17 bases, more than the 16"),
        (["GGGAAAACCC"], ["((....)))."], "closes nothing"),
        (["GGGAAAACCC"], ["(((...)))"], "9 marks for 10 bases"),
        ([""], None, "empty"),
        ("GGGAAAACCC", None, "in a list"),
        ([], None, "in a list"),
        (None, None, "in a list"),
        (["GGGAAAACCC"], [None], "y must be texts"),
        (["GGGAAAACCC"], ["(((....)))"] * 2, "1 sequences and y 2 structures"),
        (["GGGAAAACCC"], ["((([..)))]"], "pseudoknot"),
        (["GC" * 8], ["()" * 8], "less than two bases"),
    ],
)
def test_what_a_user_cannot_give_is_named(x, y, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        task_of(small("none")).from_user(x, y)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("mask", 1.5, "mask=1.5 must be between 0 and 1"),
        ("buckets", (11,), "buckets=.* must be even"),
        ("structures", 0, "structures=0 must be at least 1"),
        ("measure_samples", 0, "measure_samples=0 must be at least 1"),
        ("data.num_sample", 0, "data.num_sample=0 must be at least 1"),
        ("cvae.z", "line", "cvae.z='line' is not known; choose from none, global, pixel"),
        ("cvae.filters", (8, 16), "one multiple of 8 throughout"),
        ("cvae.network", "lstm", "choose from conv, axial"),
        ("data.max_length", 15, "must be even"),
        ("data.max_length", 164, "data.max_length=164 must be at most 162"),
        ("cvae.objective.free_bits", 0.1, "free_bits would count padding"),
    ],
)
def test_settings_that_cannot_be_are_named(key, value, says):
    config = small("pixel, fixed")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=says):
        task_of(config)


def test_buckets_hold_every_example_once_in_arrays_of_their_size():
    task = task_of(small("none"))
    arrays = rna_files.fit(rna.make(60, 5, 16, 4, seed=1)["train"], 16, 4)
    parts = buckets.of_split(task, arrays)
    assert [part.arrays["sequence"].shape[1] for part in parts] == [12, 16]
    assert (parts[0].arrays["length"] <= 12).all() and (parts[1].arrays["length"] > 12).all()
    together = np.concatenate([part.ids for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(arrays["length"])))
    for part in parts:
        np.testing.assert_array_equal(part.arrays["length"], arrays["length"][part.ids])
        width = part.arrays["sequence"].shape[1]
        np.testing.assert_array_equal(part.arrays["sequence"], arrays["sequence"][part.ids, :width])
        assert not arrays["boxes"][part.ids][:, :, part.arrays["boxes"].shape[2] :].any()
    # Too few of them for a batch join the larger ones, and too few of the largest the others.
    many = len(parts[0].ids) + 1
    (joined,) = buckets.of_split(task, arrays, many)
    assert joined.arrays["sequence"].shape[1] == 16
    np.testing.assert_array_equal(joined.ids, np.arange(len(arrays["length"])))
    # None goes on to a limit beyond what the largest needs.
    (small_ones,) = buckets.of_split(task, {name: array[parts[0].ids] for name, array in arrays.items()}, 1000)
    assert small_ones.arrays["sequence"].shape[1] == 12
    assert (
        buckets.together(task, {name: array[parts[0].ids] for name, array in arrays.items()})["sequence"].shape[1] == 12
    )
    assert buckets.together(task, arrays)["sequence"].shape[1] == 16
    few = {name: array[np.r_[:0, parts[0].ids, parts[1].ids[:2]]] for name, array in arrays.items()}
    (joined,) = buckets.of_split(task, few, 3)
    assert len(joined.ids) == many + 1 and joined.arrays["sequence"].shape[1] == 16


def test_evaluation_gives_examples_back_in_the_order_of_the_split():
    task = task_of(small("none"))
    arrays = rna_files.fit(rna.make(40, 5, 16, 4, seed=2)["train"], 16, 4)
    measured = [(batch, count) for batch, count in batches.of_split(task, arrays, 0)]
    assert len(measured) == 2
    ids = np.concatenate([np.asarray(batch.ids)[:count] for batch, count in measured])
    lengths = [(np.asarray(batch.x["length"]), count) for batch, count in measured]
    np.testing.assert_array_equal(joined_rows(lengths, np.argsort(ids)), arrays["length"])


@pytest.mark.slow
def test_terms_of_many_structures_are_per_structure():
    """And the weight of the KL is none of them: it is not divided."""
    config = small("global, learned", structures=3)
    config.cvae.objective.update(beta=2.0, beta_schedule="linear", beta_steps=8)
    stage = task_of(config).stages[0]
    fitted, batch = model_of("global, learned")
    y, weight = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 3, 1), (batch.y, batch.weight))
    three = batch._replace(y=y, weight=weight, num_targets=3 * batch.num_targets)
    train = Train(keys.per_example(jax.random.key(1), batch.ids), jnp.int32(4))
    terms = []
    for some in (batch, three):
        draw_keys = keys.per_example(jax.random.key(0), some.ids)
        terms.append(step.loss_fn(stage, fitted.variables, some, draw_keys, train)[1][0])
    assert terms[0]["beta"] == terms[1]["beta"] == 1
    np.testing.assert_allclose(terms[0]["kl"], terms[1]["kl"], rtol=1e-5)  # analytic: it is the same of equal y


@pytest.mark.slow
def test_simulated_structures_count_where_their_own_boxes_lie():
    fitted, batch = model_of("global, learned")
    # The weight of the data's own y is what the task gave it.
    jax.tree.map(np.testing.assert_array_equal, fitted.model.weight(batch), batch.weight)
    simulated, _ = ais.simulate(fitted, batch, jax.random.key(0))
    y, on = simulated.y, np.asarray(simulated.y["on"])
    np.testing.assert_array_equal(simulated.weight["on"], batch.weight["on"])
    assert on.any() and not on[np.broadcast_to(batch.weight["on"], on.shape) == 0].any()
    for name, inside in (("location", on[..., [0, 0, 1, 1, 2, 2]]), ("size", on[..., [0, 1, 1, 2]])):
        np.testing.assert_array_equal(simulated.weight[name], inside)
        assert (np.asarray(simulated.weight[name]) != np.asarray(batch.weight[name])).any()
        assert np.asarray(y[name]).any() and not np.asarray(y[name])[inside == 0].any()
    # And log p(y|x,z) is the sum over these elements.
    draw = fitted.draw(fitted.encode(simulated), keys.per_example(jax.random.key(1), batch.ids), "prior")
    scored = {name: np.asarray(values, np.float64) for name, values in draw.p_y.log_prob(y).items()}
    total = sum((scored[name] * np.asarray(simulated.weight[name])).sum((2, 3, 4)) for name in scored)
    np.testing.assert_allclose(draw.log_p_y, total, rtol=1e-5)


@pytest.mark.slow
def test_a_run_over_buckets_is_resumed_bit_for_bit_and_measured(tmp_path, monkeypatch):
    config = small("none")
    config.cvae.network = "conv"  # with batch statistics
    config.data.update(num_seq=100, min_len=9)
    config.cvae.update(epochs=2, batch_size=8, figure_every=0, checkpoint_every=1)
    cvae_jax.train(config, str(tmp_path / "whole"))
    rows, write = [], log.Log.write

    def write_and_fail(self, *arguments):
        write(self, *arguments)
        rows.append(arguments)
        if len(rows) == 2:  # before the second epoch's checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(log.Log, "write", write_and_fail)
    with pytest.raises(KeyboardInterrupt):
        cvae_jax.train(config, str(tmp_path / "cut"))
    cvae_jax.train(config, str(tmp_path / "cut"))
    assert len(rows) == 3 and kill.fingerprint(tmp_path / "cut") == kill.fingerprint(tmp_path / "whole")

    text = evaluation.evaluate([str(tmp_path / "whole")], evaluation.Request(output=str(tmp_path / "out")))
    assert "MFE of ViennaRNA" in text and metrics.CORRELATION in text
    test = rna.load(config.data)["test"]
    assert len(set(test["length"] <= 12)) == 2  # of both buckets
    numbers = {}
    for measured in json.loads((tmp_path / "out" / "examples.json").read_text())["task_measures"]:
        if measured["name"] == metrics.ERROR:
            numbers[measured["model"]] = np.array(measured["values"])[0, :, 1]
    assert len(numbers) == 4
    for of_model in numbers.values():  # in the order of the split: how many pairs there are tells the length
        np.testing.assert_array_equal(of_model, test["length"] * (test["length"] - 1) // 2)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"matrix_whole.png", "arcs_whole.png", "samples_whole.png"} < pictures
    assert sum(name.startswith("GED") for name in pictures) == 2
