import json
import sys

import contract
import jax
import jax.numpy as jnp
import kill
import numpy as np
import pytest
from contract import moved
from scipy import special

import cvae_jax
from configs import rna_boxes
from cvae_jax import evaluation, keys, tasks
from cvae_jax.data import buckets
from cvae_jax.distributions import Bernoulli, Categorical, Joint
from cvae_jax.errors import UserError
from cvae_jax.inference import ais as annealing
from cvae_jax.model import Draw, How, Train
from cvae_jax.tasks.rna_boxes import boxes, folding, prediction
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes import files as rna_files
from cvae_jax.tasks.rna_boxes import metrics as measures
from cvae_jax.tasks.rna_boxes.ensemble import ensemble
from cvae_jax.tasks.rna_boxes.pairs import ConvTower, fold, unfold, upper
from cvae_jax.tasks.rna_boxes.task import training_weights, weights
from cvae_jax.training import log as metrics
from cvae_jax.training import loop as training

SEQUENCES = ["GGGAAAACCC", "GGCGAAAGCAAC", "GAGAAAAUCACU"]
STRUCTURES = ["(((....)))", "((.(...)))..", ".((....))..."]
MODELS = {
    "none": {"z": "none"},
    "global, learned": {"z": "global", "prior": "learned"},
    "pixel, fixed": {"z": "pixel", "prior": "fixed"},
    "pixel, learned": {"z": "pixel", "prior": "learned", "network": "conv"},
}


def small(name, **changes):
    config = rna_boxes.get_config("smoke")
    config.buckets = (12,)
    config.data.update(max_length=16, max_len=16, num_seq=40)
    config.cvae.update(filters=(8,), latent=3, hidden=8, decoder=8, **MODELS[name])
    config.update(changes)
    return config


def model_of(name, x=SEQUENCES, y=STRUCTURES, **changes):
    task = tasks.make_task(small(name, **changes))
    batch, model = task.observe(x, y), task.stages[0].model
    return model, gentle(moved(jax.jit(model.init)(jax.random.key(0), batch))), batch


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
    model, variables, batch = model_of(name)
    drawn = contract.draw(model, contract.richest(model, variables, batch), variables, batch)
    p_y = {head: np.asarray(unfold(p.logits[:, 0], 1), np.float64) for head, p in drawn.p_y.heads.items()}
    for row, (sequence, structure) in enumerate(zip(SEQUENCES, STRUCTURES, strict=True)):
        found = boxes.boxes_of(boxes.parse(structure)[0])
        wanted = {head: np.asarray(values) for head, values in boxes.targets(jnp.asarray(found), 12).items()}
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
    model, variables, batch = model_of(name)
    longer = tasks.make_task(small(name, buckets=())).observe(SEQUENCES, STRUCTURES)
    assert (batch.x["sequence"].shape[1], longer.x["sequence"].shape[1]) == (12, 16)
    short, long = (contract.draw(model, "prior_mean", variables, one) for one in (batch, longer))
    for of in (
        lambda draw: draw.log_p_y.reshape(3, -1).sum(1),
        lambda draw: jnp.nan_to_num(draw.log_p_z).reshape(3, -1).sum(1),
        lambda draw: jnp.nan_to_num(draw.log_q_z).reshape(3, -1).sum(1),
        lambda draw: sum(leaf.reshape(3, -1).sum(1) for leaf in jax.tree.leaves(draw.kl)) + jnp.zeros(3),
    ):
        np.testing.assert_allclose(of(short), of(long), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_structures_of_one_sequence_are_factors():
    """Each structure of a batch has the densities that it has by itself, and the batch counts them all."""
    task = tasks.make_task(small("global, learned", structures=3))
    model = task.stages[0].model
    arrays = rna_files.fit(rna.make(12, 10, 12, 4, seed=0)["train"], 16, 4)
    raw = {name: jnp.asarray(arrays[name]) for name in task.raw}
    index = jnp.arange(len(raw["length"]))
    batch = task.batch(raw, index, jnp.ones(len(index)), keys.per_example(jax.random.key(0), index), True)
    np.testing.assert_array_equal(batch.valid, 3)
    variables = moved(jax.jit(model.init)(jax.random.key(0), batch))
    together = contract.draw(model, "prior_mean", variables, batch)
    assert together.log_p_y.shape == (len(index), 3) and together.kl[0].shape == (len(index), 3, 3)
    for number in range(3):
        one = jax.tree.map(
            lambda leaf, n=number: leaf[:, n : n + 1] if leaf.shape[1] == 3 else leaf, (batch.y, batch.weight)
        )
        alone = contract.draw(model, "prior_mean", variables, batch._replace(y=one[0], weight=one[1]))
        np.testing.assert_allclose(alone.log_p_y[:, 0], together.log_p_y[:, number], rtol=1e-5)
        np.testing.assert_allclose(alone.kl[0][:, 0], together.kl[0][:, number], rtol=1e-4, atol=1e-5)
    # They are among the sequence's own four.
    own = np.asarray(boxes.targets(raw["boxes"], 16)["on"])
    for row in range(len(index)):
        for number in range(3):
            seen = np.asarray(unfold(batch.y["on"][row, number], 0))
            assert any((seen == one).all() for one in own[row, : int(raw["count"][row])])


@pytest.mark.slow
def test_batch_statistics_follow_training_and_stay_in_validation():
    _, variables, batch = model_of("pixel, learned")
    before = variables["batch_stats"]
    task = tasks.make_task(small("pixel, learned"))
    index = batch.index
    train = Train(keys.per_example(jax.random.key(1), index), jnp.int32(0))
    variables = {**variables, "frozen": {}}
    _, (_, updates) = training.loss_fn(task.stages[0], variables, batch, keys.unused(index), train)
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
    _, (_, updates) = training.loss_fn(task.stages[0], variables, batch, keys.unused(index), None)
    assert not jax.tree.leaves(updates)


@pytest.mark.slow
def test_training_weights_against_numpy():
    found = jnp.asarray(boxes.boxes_of(boxes.parse("((((....))))" + 28 * ".")[0]))[None, None]
    y = boxes.targets(found, 40)
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


def certain(found, side):
    """A draw whose likelihood is certain of these boxes, int [k, 5]."""
    y = boxes.targets(jnp.asarray(found)[None, None], side)
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
    found, side = boxes.boxes_of(pairs), len(structure) + len(structure) % 2
    answers = prediction.answers(certain(found, side))
    assert boxes.shared_pixels(found) == (structure == "((..(..((...))..)..))...")
    merged = folding.merge(np.asarray(answers["codes"]), np.asarray(answers["votes"]), side)
    assert {tuple(box) for box in merged.boxes.tolist()} == {tuple(box) for box in found.tolist()}
    # The share of a box's pixels that name it: they know its corner, and lie in no box of the type before it.
    taken, wanted = set(), {}
    for kind, x0, y0, wx, wy in found.tolist():
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
def test_measures_of_a_model_and_of_baselines():
    model, variables, batch = model_of("global, learned")
    of = measures.measures(num_samples=6)
    found = of.of_batch(model, variables, batch, How(False, True, "prior"), jax.random.key(0))
    for name, values in found.items():
        assert len(values) == 3, name
        assert (values.ndim == 2) == (name in of.pooled), name
    assert set(of.pooled) < set(found)
    exact = [ensemble(sequence).probabilities for sequence in SEQUENCES]
    baselines = of.baselines(batch)
    mfe = baselines["MFE of ViennaRNA"]
    assert set(mfe) < set(found)
    matrices = []
    for sequence in SEQUENCES:
        matrices.append(np.zeros((len(sequence), len(sequence))))
        for i, j in ensemble(sequence).mfe:
            matrices[-1][i, j] = 1
    a, b = (np.concatenate([one[np.triu_indices(len(one), 1)] for one in some]) for some in (matrices, exact))
    assert of.pooled[measures.CORRELATION](mfe[measures.CORRELATION].sum(0)) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert of.pooled[measures.ERROR](mfe[measures.ERROR].sum(0)) == pytest.approx(np.abs(a - b).mean())
    drawn = next(values for name, values in baselines.items() if "samples" in name)
    assert (drawn[measures.GED.format("mean y")] < 0.1).all()


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
def test_what_cannot_be_observed_is_named(x, y, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        tasks.make_task(small("none")).observe(x, y)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("mask", 1.5, "mask=1.5 must be between 0 and 1"),
        ("buckets", (11,), "buckets=.* must be even"),
        ("structures", 0, "structures=0 must be at least 1"),
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
        tasks.make_task(config)


def test_buckets_hold_every_example_once_in_arrays_of_their_size():
    task = tasks.make_task(small("none"))
    arrays = rna_files.fit(rna.make(60, 5, 16, 4, seed=1)["train"], 16, 4)
    parts = buckets.of_split(task, arrays)
    assert [part.arrays["sequence"].shape[1] for part in parts] == [12, 16]
    assert (parts[0].arrays["length"] <= 12).all() and (parts[1].arrays["length"] > 12).all()
    together = np.concatenate([part.index for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(arrays["length"])))
    for part in parts:
        np.testing.assert_array_equal(part.arrays["length"], arrays["length"][part.index])
        width = part.arrays["sequence"].shape[1]
        np.testing.assert_array_equal(part.arrays["sequence"], arrays["sequence"][part.index, :width])
        assert not arrays["boxes"][part.index][:, :, part.arrays["boxes"].shape[2] :].any()
    # Too few of them for a batch join the larger ones, and too few of the largest the others.
    many = len(parts[0].index) + 1
    (joined,) = buckets.of_split(task, arrays, many)
    assert joined.arrays["sequence"].shape[1] == 16
    np.testing.assert_array_equal(joined.index, np.arange(len(arrays["length"])))
    # None goes on to a limit beyond what the largest needs.
    (small_ones,) = buckets.of_split(task, {name: array[parts[0].index] for name, array in arrays.items()}, 1000)
    assert small_ones.arrays["sequence"].shape[1] == 12
    assert (
        buckets.together(task, {name: array[parts[0].index] for name, array in arrays.items()})["sequence"].shape[1]
        == 12
    )
    assert buckets.together(task, arrays)["sequence"].shape[1] == 16
    few = {name: array[np.r_[:0, parts[0].index, parts[1].index[:2]]] for name, array in arrays.items()}
    (joined,) = buckets.of_split(task, few, 3)
    assert len(joined.index) == many + 1 and joined.arrays["sequence"].shape[1] == 16


def test_evaluation_gives_examples_back_in_the_order_of_the_split():
    task = tasks.make_task(small("none"))
    arrays = rna_files.fit(rna.make(40, 5, 16, 4, seed=2)["train"], 16, 4)
    found = [(np.asarray(batch.x["length"]), valid) for batch, valid in evaluation.batches(task, arrays, 0)]
    positions = [np.asarray(batch.index)[:valid] for batch, valid in evaluation.batches(task, arrays, 0)]
    assert len(found) == 2
    np.testing.assert_array_equal(
        sys.modules["cvae_jax.evaluation.evaluate"]._joined(found, np.concatenate(positions)), arrays["length"]
    )


@pytest.mark.slow
def test_terms_of_many_structures_are_per_structure():
    """And the weight of the KL is none of them: it is not divided."""
    config = small("global, learned", structures=3)
    config.cvae.objective.update(beta=2.0, annealing="linear", annealing_steps=8)
    stage = tasks.make_task(config).stages[0]
    _, variables, batch = model_of("global, learned")
    three = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 3, 1), (batch.y, batch.weight))
    three = batch._replace(y=three[0], weight=three[1], valid=3 * batch.valid)
    train = Train(keys.per_example(jax.random.key(1), batch.index), jnp.int32(4))
    found = []
    for one in (batch, three):
        keys_of = keys.per_example(jax.random.key(0), one.index)
        _, (terms, _) = training.loss_fn(stage, {**variables, "frozen": {}}, one, keys_of, train)
        found.append(terms)
    assert found[0]["beta"] == found[1]["beta"] == 1
    np.testing.assert_allclose(found[0]["kl"], found[1]["kl"], rtol=1e-5)  # analytic: it is the same of equal y


@pytest.mark.slow
def test_simulated_structures_say_nothing_where_nothing_counts():
    model, variables, batch = model_of("global, learned")
    simulated, _ = annealing.simulate(model, variables, batch, jax.random.key(0))
    for name, weight in batch.weight.items():
        weight = np.broadcast_to(weight, batch.y[name].shape)
        assert not np.asarray(simulated.y[name])[weight == 0].any()
    assert np.asarray(simulated.y["on"]).any() and np.asarray(simulated.y["location"]).any()


@pytest.mark.slow
def test_a_run_over_buckets_is_resumed_bit_for_bit_and_measured(tmp_path, monkeypatch):
    config = small("none")
    config.cvae.network = "conv"  # with batch statistics
    config.data.update(num_seq=100, min_len=9)
    config.cvae.update(epochs=2, batch_size=8, figure_every=0, checkpoint_every=1)
    cvae_jax.train(config, str(tmp_path / "whole"))
    rows, write = [], metrics.Log.write

    def write_and_fail(self, *arguments):
        write(self, *arguments)
        rows.append(arguments)
        if len(rows) == 2:  # before the second epoch's checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.Log, "write", write_and_fail)
    with pytest.raises(KeyboardInterrupt):
        cvae_jax.train(config, str(tmp_path / "cut"))
    cvae_jax.train(config, str(tmp_path / "cut"))
    assert len(rows) == 3 and kill.fingerprint(tmp_path / "cut") == kill.fingerprint(tmp_path / "whole")

    text = evaluation.evaluate([str(tmp_path / "whole")], output=str(tmp_path / "out"))
    assert "MFE of ViennaRNA" in text and measures.CORRELATION in text
    test = rna.load(config.data)["test"]
    assert len(set(test["length"] <= 12)) == 2  # of both buckets
    numbers = {}
    for one in json.loads((tmp_path / "out" / "examples.json").read_text())["task_measures"]:
        if one["name"] == measures.ERROR:
            numbers[one["model"]] = np.array(one["values"])[0, :, 1]
    assert len(numbers) == 4
    for of_model in numbers.values():  # in the order of the split: how many pairs there are tells the length
        np.testing.assert_array_equal(of_model, test["length"] * (test["length"] - 1) // 2)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"matrix_whole.png", "arcs_whole.png", "samples_whole.png"} < pictures
    assert sum(name.startswith("GED") for name in pictures) == 2
