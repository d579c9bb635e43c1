"""Tables of results: every figure where it belongs, by hand."""

import json

import numpy as np
import pytest
from results import cells, estimate, result

from cvae_jax.evaluation import tables
from cvae_jax.inference.estimators import Estimate

NAN = np.full(2, np.nan)


def test_gains_stand_under_the_columns_of_their_own_baseline():
    baseline, cvae = estimate([-3.0, -5.0]), estimate([-2.0, -4.5], 0.1, 9.0, 0.2)
    rows = cells(
        tables.table(
            [
                result("1 quadrant", "m baseline", "exact", 1, baseline),
                result("1 quadrant", "m cvae", "is", 1000, cvae),
                result("2 quadrants", "m baseline", "exact", 1, baseline),
            ]
        )
    )
    assert rows[2] == ["m baseline", "exact", "1", "4.00 ± 1.00", "4.00 ± 1.00"]
    assert rows[3] == ["m cvae", "is", "1,000", "3.25 ± 1.25, MC 0.071, ESS 9", ""]
    assert rows[4] == ["gain of m cvae over m baseline, exact", "is", "1,000", "0.75 ± 0.25, MC 0.071", ""]


def test_a_gain_is_over_the_first_model_by_the_same_estimator():
    results = [
        result("c", "one", "elbo", 10, estimate([-3.0, -5.0])),
        result("c", "one", "is", 10, estimate([-2.0, -4.0])),
        result("c", "two", "elbo", 10, estimate([-2.5, -4.5])),
        result("c", "two", "is", 10, estimate([-1.0, -3.0])),
    ]
    rows = cells(tables.table(results))
    # None over itself; 0.5 and 1.0 over its own kind.
    gains = [["gain of two over one", "elbo", "10", "0.50 ± 0.00"], ["gain of two over one", "is", "10", "1.00 ± 0.00"]]
    assert rows[6:] == gains
    assert tables.gains(results[1], results) == []
    assert [gain["over"] for gain in tables.gains(results[3], results)] == ["one, is 10"]


def test_gains_are_over_the_columns_first_model_and_all_before_it_in_its_run():
    """Two runs of a network, its control and a model with z: none is compared with another run's but the first."""
    results = [
        result("c", model, "exact", 1, estimate([value, value - 1]))._replace(workdir=workdir)
        for workdir, model, value in (
            ("v", "a baseline", -8.0),
            ("v", "a control", -7.0),
            ("v", "a cvae", -5.0),
            ("w", "b baseline", -4.0),
            ("w", "b cvae", -1.0),
        )
    ]
    by_model = {row.model: [(gain["over"], gain["gain"]) for gain in tables.gains(row, results)] for row in results}
    assert by_model == {
        "a baseline": [],
        "a control": [("a baseline, exact 1", 1)],
        "a cvae": [("a baseline, exact 1", 3), ("a control, exact 1", 2)],
        "b baseline": [("a baseline, exact 1", 4)],
        "b cvae": [("a baseline, exact 1", 7), ("b baseline, exact 1", 3)],
    }
    assert [row[0] for row in cells(tables.table(results))[7:]] == [
        f"gain of {one} over {over.removesuffix(', exact 1')}" for one, gains in by_model.items() for over, _ in gains
    ]


def test_a_gain_is_never_over_a_bound():
    """Two models of equal log p: what the first one's ELBO lacks is no gain of the second."""
    elbo, sampled = (
        result("c", "cvae", name, 100, estimate([at] * 2)) for name, at in (("elbo", -105.0), ("is", -100))
    )
    network = result("c", "network", "exact", 1, estimate([-100.0] * 2))
    for order in ([elbo, sampled, network], [sampled, elbo, network]):
        assert cells(tables.table(order))[5:] == [["gain of network over cvae, is 100", "exact", "1", "0.00 ± 0.00"]]
        assert [gain["gain"] for gain in tables.gains(network, order)] == [0]
    assert tables.gains(network, [elbo, network]) == []
    assert "gain" not in tables.table([elbo, network])


def test_a_gain_is_over_the_estimate_nearest_to_the_truth():
    first = [result("c", "one", name, count, estimate([-1.0, -1.0])) for name, count in
             (("elbo", 9), ("mc", 5000), ("is", 100), ("is", 1000), ("defensive", 100))]  # fmt: skip
    by = {name: tables.gains(row, [*first, row])[0]["over"] for name, row in
          ((name, result("c", "two", name, 500, estimate([-2.0, -2.0]))) for name in
           ("elbo", "is", "mc", "ais", "exact"))}  # fmt: skip
    defensive = "one, defensive 100"
    alike = {"elbo": "one, elbo 9", "is": "one, is 1000", "mc": "one, mc 5000"}
    assert by == {**alike, "ais": defensive, "exact": defensive}
    exact = result("c", "one", "exact", 1, estimate([-1.0, -1.0]))
    elbo = result("c", "two", "elbo", 9, estimate([-2.0, -2.0]))
    assert tables.gains(elbo, [exact, elbo])[0]["over"] == "one, exact 1"


@pytest.mark.parametrize(("error", "places"), [(0.2, 2), (0.011, 2), (0.0097, 4), (0.0034, 4), (0.00012, 5), (0.0, 2)])
def test_a_small_error_is_shown_with_two_digits(error, places):
    assert tables.decimals(error) == places
    cell = result("c", "m", "exact", 1, estimate([0.5 - error, 0.5 + error]))  # whose standard error is that
    assert cells(tables.table([cell]))[2][-1] == f"{-0.5:.{places}f} ± {error:.{places}f}"


def test_examples_with_a_heavy_tail_are_counted():
    doubtful = estimate([-2.0, -4.5], 0.1, 9.0, [0.9, 0.1], [-0.02, -0.01], [1.0, 0.0])
    results = [
        result("c", "first", "is", 1000, estimate([-3.0, -5.0], 0.1, 9.0)),
        result("c", "m", "is", 1000, doubtful),
    ]
    rows = cells(tables.table(results))
    assert rows[3][-1] == "3.25 ± 1.25, MC 0.071?, bias 0.015?, ESS 9, flagged 50%"
    # A quarter of the difference's squared error is of the example that is flagged.
    assert rows[4][-1] == "0.75 ± 0.25, MC 0.1, bias -0.015"
    numbers, (gain,) = tables.summary(results[1]), tables.gains(results[1], results)
    assert numbers["bias"] == pytest.approx(0.015) and gain["bias"] == pytest.approx(-0.015)
    assert not numbers["monte_carlo_error_and_bias_are_credible"]
    assert gain["monte_carlo_error_and_bias_are_credible"]
    assert numbers["share_of_examples_flagged"] == 0.5
    (row,) = tables.examples(results[1])
    assert row["bias"] == [-0.02, -0.01] and row["flagged"] == [1, 0] and row["k_hat"] == [0.9, 0.1]


SEEDS = [
    result("c", "baseline", "exact", 1, estimate([-3.0, -5.0]), estimate([-3.0, -6.0])),
    result("c", "cvae", "is", 1000, estimate([-2.0, -4.0], 0.1, 9.0, 0.1), estimate([-1.0, -4.0], 0.1, 7.0, 0.1)),
]


def test_seeds_are_averaged_and_their_deviation_told():
    rows = cells(tables.table(SEEDS))
    # Means over seeds by example: -3, -5.5 and -1.5, -4; means by seed: -4, -4.5 and -3, -2.5.
    assert rows[2][-1] == "4.25 ± 1.25, seeds 0.35"
    assert rows[3][-1] == "2.75 ± 1.25, seeds 0.35, MC 0.05, ESS 8"
    # Differences by seed: 1 and 2; of the means by example 1.5 and 1.5.
    assert rows[4] == ["gain of cvae over baseline, exact", "is", "1,000", "1.50 ± 0.00, seeds 0.71, MC 0.05"]
    row, (gain,) = tables.summary(SEEDS[1]), tables.gains(SEEDS[1], SEEDS)
    assert row["of_seeds"] == [3.0, 2.5] and row["seeds"] == [0, 1]
    assert row["negative_log_likelihood"] == 2.75 and gain["gain"] == 1.5
    assert row["deviation_over_seeds"] == pytest.approx(np.sqrt(0.125))
    assert gain["deviation_over_seeds"] == pytest.approx(np.sqrt(0.5))
    assert row["monte_carlo_error"] == pytest.approx(0.05)
    assert row["effective_samples_median"] == 8 and row["effective_samples_min"] == 7


def test_more_seeds_than_the_reference_has():
    results = [result("c", "baseline", "exact", 1, estimate([-3.0, -5.0])), SEEDS[1]]
    gain, deviation = tables.gain_of(SEEDS[1], results[0])
    assert gain.value == 1.25 and deviation == pytest.approx(np.std([1.0, 1.5], ddof=1))


def test_json_holds_every_example_of_every_seed_and_no_nan():
    rows = [row for cell in SEEDS for row in tables.examples(cell)]
    again = json.loads(json.dumps(rows, allow_nan=False))
    assert [row["seed"] for row in again] == [0, 1, 0, 1]
    assert again[2]["value"] == [-2, -4] and again[3]["ess"] == [7, 7] and again[0]["k_hat"] == [None, None]
    one_sample = result("c", "m", "is", 1, estimate([2.0, 1.0], error=np.nan, k_hat=np.inf))
    assert tables.summary(one_sample)["monte_carlo_error"] is None
    assert "MC ?" in tables.table([one_sample])


def test_examples_that_belong_together_count_once():
    """Every example thrice: the errors are those of the examples, for values and gains alike."""
    rng = np.random.default_rng(0)
    baseline, cvae = rng.normal(size=(2, 6))
    clusters = np.repeat(np.array(["a", "b", "c", "d", "e", "f"]), 3)

    def pair(repeats, clusters=None):
        return [
            result("c", name, "is", 1000, estimate(np.repeat(values, repeats)))._replace(clusters=clusters)
            for name, values in (("baseline", baseline), ("cvae", cvae))
        ]

    alone, together, unaware = pair(1), pair(3, clusters), pair(3)

    def errors(results):
        (gain,) = tables.gains(results[1], results)
        return tables.summary(results[1])["standard_error"], gain["standard_error"]

    assert errors(together) == pytest.approx(errors(alone))
    assert errors(alone) == pytest.approx([cvae.std(ddof=1) / 6**0.5, (cvae - baseline).std(ddof=1) / 6**0.5])
    assert (np.array(errors(unaware)) < 0.6 * np.array(errors(alone))).all()
    assert "clusters" not in json.dumps(tables.summary(together[1]))


def test_json_holds_the_parts_of_examples_that_have_several():
    several = Estimate(*np.zeros((7, 2)), per_factor=np.array([[1.0, 2.0], [3.0, np.nan]]))
    single = several._replace(per_factor=np.ones((2, 1)))
    rows = [row for estimates in (several, single) for row in tables.examples(result("c", "m", "is", 9, estimates))]
    assert rows[0]["per_factor"] == [[1.0, 2.0], [3.0, None]] and "per_factor" not in rows[1]
