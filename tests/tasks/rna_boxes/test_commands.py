"""`make`, `convert` and `fold` as users give them, and everything that is wrong as one line."""

import csv
import re

import jax
import numpy as np
import pytest
from command import run
from rna_sets import command, settings, small, structures_of

import cvae_jax
from cvae_jax.tasks.rna_boxes import boxes, commands, ensemble, prediction
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.data import Shares
from cvae_jax.tasks.rna_boxes.sequences import decode, encode

ROWS = [
    ("tRNA_a", "GGGAAACCC", "(((...)))"),
    ("5s_a", "GGTAAACCC", "(((...)))"),
    ("5s_b", "GGGAAACCCAAA", "(((...)))..."),
    ("5s_c", "GGAAAACCAA", "((....)).."),
    ("5s_d", "GGAAAACCUU", "(......).."),
    ("5s_e", "GGAAAACCUA", ".........."),
]


@pytest.fixture
def table(tmp_path):
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "sequence", "structure"), *ROWS])
    return tmp_path / "table.csv"


def equal(splits, others):
    return list(splits) == list(others) and all(
        np.array_equal(array, others[split][name]) for split in splits for name, array in splits[split].items()
    )


def test_make_within_a_gap(vienna, tmp_path, capsys):
    flags = ["--num_seq=8", "--min_len=18", "--max_len=18", "--num_sample=3", "--energy_gap=1.0", "--seed=4"]
    out = tmp_path / "data"
    commands.main(["make", *flags, "--valid_share=0.25", "--test_share=0", f"--out={out}"], cvae_jax.load)
    printed = capsys.readouterr()
    loaded = rna.load(settings(out, max_length=18))
    assert equal(loaded, rna.make(8, 18, 18, 3, seed=4, energy_gap=1.0, shares=Shares(0.25, 0)))
    assert {split: len(arrays["length"]) for split, arrays in loaded.items()} == {"train": 6, "valid": 2}
    number = 0
    for arrays in loaded.values():
        for n in range(len(arrays["length"])):
            sequence, structures = structures_of(arrays, n)
            assert structures == ensemble.within(sequence, 1.0, 3)
            number += len(structures)
    first, second, last = printed.out.splitlines()
    assert first.startswith(f"8 sequences (6 train, 2 valid) of 18 to 18 bases, {number} structures, ")
    assert re.fullmatch(r"not represented: \d+ multiloops, and \d+ pixels in more than one box of a type", second)
    assert re.fullmatch(rf"\d+ sequences per second, in {out}", last) and printed.err == ""


def test_convert_a_part_of_a_table(table, tmp_path, capsys):
    out = tmp_path / "data"
    flags = ["--family=5s", "--max_len=10", "--valid_share=0", "--test_share=0.5", "--seed=3", f"--out={out}"]
    commands.main(["convert", str(table), *flags], cvae_jax.load)
    lines = capsys.readouterr().out.splitlines()
    splits = rna.load(settings(out, max_length=10, num_sample=1))
    assert {split: len(arrays["length"]) for split, arrays in splits.items()} == {"train": 2, "test": 2}
    known = [structures_of(arrays, n) for arrays in splits.values() for n in range(2)]
    wanted = [(decode(encode(sequence)), [structure]) for name, sequence, structure in ROWS[1:] if name != "5s_b"]
    assert sorted(known) == sorted(wanted)
    assert lines[0].startswith("4 sequences (2 train, 2 test) of 9 to 10 bases, 4 structures, 6 boxes")
    assert "left out: 1 sequences of more than 10 bases" in lines


def test_convert_follows_its_seed(table, tmp_path):
    splits = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        commands.main(["convert", str(table), f"--seed={seed}", f"--out={out}"], cvae_jax.load)
        splits.append(rna.load(settings(out, num_sample=1)))
    assert [len(arrays["length"]) for arrays in splits[0].values()] == [4, 1, 1]
    assert equal(splits[0], splits[1]) and not equal(splits[0], splits[2])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: command"),
        (["unfold"], "argument command: invalid choice: 'unfold'"),
        (["make"], "the following arguments are required: --out"),
        (["make", "--num_sq=3"], "the following arguments are required: --out"),
        (["make", "--out={out}", "--num_sq=3"], "unrecognized arguments: --num_sq=3"),
        (["make", "--out={out}", "--seed=first"], "argument --seed: invalid int value: 'first'"),
        (["make", "--out={out}", "--energy_gap=wide"], "argument --energy_gap: invalid float value: 'wide'"),
        (["make", "--out={out}", "--seed=-1"], "num_seq=1000 and num_sample=10 must be at least 1, seed=-1"),
        (["make", "--out={out}", "--energy_gap=-1"], "energy_gap=-1.0 must be at least 0"),
        (["make", "--out={out}", "--energy_gap=nan"], "energy_gap=nan must be at least 0"),
        (["make", "--out={out}", "--min_len=9", "--max_len=8"], "min_len=9 and max_len=8"),
        (["make", "--out={out}", "--valid_share=0.6", "--test_share=0.6"], "valid_share=0.6 and test_share=0.6"),
        (["make", "--out={out}", "--valid_share=nan"], "valid_share=nan and test_share=0.1"),
        (["convert", "--out={out}"], "the following arguments are required: FILE"),
        (["convert", "{table}"], "the following arguments are required: --out"),
        (["convert", "{table}", "--out={out}", "--family=srp"], "{table} has no family 'srp'; choose from 5s, tRNA"),
        (["convert", "{table}", "--out={out}", "--max_len=4"], "{table} has no sequence that can be used"),
        (["convert", "{table}", "--out={out}", "--max_len=-1"], "--max_len=-1 and --num_sample=0 must be at least 0"),
        (["convert", "{table}", "--out={out}", "--num_sample=-1"], "--max_len=0 and --num_sample=-1 must be"),
        (["convert", "{table}", "--out={out}", "--test_share=2"], "valid_share=0.1 and test_share=2.0"),
        (["convert", "{table}", "--out={table}"], "{table} cannot be written (File exists); choose another folder"),
        (["fold", "GGGAAACCC"], "the following arguments are required: --workdir"),
        (["fold", "--workdir={out}"], "the following arguments are required: SEQUENCE"),
        (["fold", "--workdir={out}", "--num_samples=few", "GC"], "argument --num_samples: invalid int value: 'few'"),
        (["fold", "--workdir={out}", "GGGAAACCC"], "{out}"),
    ],
)
def test_what_is_wrong_ends_in_one_line(table, tmp_path, arguments, line):
    places = {"table": table, "out": tmp_path / "out"}
    said = command(*(argument.format(**places) for argument in arguments))
    assert said.startswith("error: ") and line.format(**places) in said
    assert not (tmp_path / "out").exists()


def test_an_interrupted_command_says_so(tmp_path, monkeypatch):
    def interrupt(*numbers, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(rna, "make", interrupt)
    assert command("make", "--out", tmp_path / "out") == "interrupted"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_wrong_commands_of_a_process(table, tmp_path):
    """Exit code 1, nothing on standard output, and one line on standard error."""
    for arguments in (
        ("make", "--num_seq=0", f"--out={tmp_path / 'out'}"),
        ("convert", str(table), "--family=srp", f"--out={tmp_path / 'out'}"),
        ("fold", f"--workdir={tmp_path / 'out'}", "GGGAAACCC"),
        ("unfold",),
    ):
        process = run("-m", "cvae_jax", "rna_boxes", *arguments)
        assert (process.returncode, process.stdout) == (1, "")
        assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    process = run("-m", "cvae_jax", "rna_boxes", "fold", "--help")
    assert process.returncode == 0 and "--num_samples" in process.stdout


# With a trained model.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a small model that was trained for an epoch."""
    config = small("global, learned", measure_samples=4)
    config.cvae.update(network="conv", epochs=1, batch_size=4, figure_every=0)
    folder = tmp_path_factory.mktemp("rna") / "run"
    with jax.numpy_dtype_promotion("standard"):  # before the fixture that lets Optax promote
        cvae_jax.train(config, str(folder))
    return folder


SEQUENCES = ["GGGGAAAACCCC", "gcgcaaaagtgc", "GGGAAAUCC"]


@pytest.mark.slow
def test_fold_prints_what_the_model_predicts(workdir, capsys):
    trained = cvae_jax.load(str(workdir))
    for seed in (0, 3):
        flags = [f"--workdir={workdir}", "--num_samples=20", f"--seed={seed}"]
        commands.main(["fold", *flags, *SEQUENCES], cvae_jax.load)
        lines = capsys.readouterr().out.splitlines()
        for predicted in prediction.predict(trained, SEQUENCES, 20, jax.random.key(seed)):
            length = len(predicted.sequence)
            assert lines.pop(0) == predicted.sequence
            assert lines.pop(0) == f"{boxes.dot_bracket(predicted.pairs, length)}  maximum expected accuracy"
            drawn = [boxes.dot_bracket(pairs, length) for pairs in predicted.structures]
            shown = {}
            while match := re.fullmatch(r"([.()]+)  (\d+)% of 20 samples", lines[0]):
                shown[match[1]] = int(match[2])
                lines.pop(0)
            assert shown == {structure: 5 * drawn.count(structure) for structure in shown}
            assert len(shown) == min(5, len(set(drawn))) and list(shown.values()) == sorted(shown.values())[::-1]
            assert all(5 * drawn.count(structure) <= min(shown.values()) for structure in set(drawn) - set(shown))
            probable = predicted.boxes.probability >= 0.1
            if not probable.any():
                assert lines.pop(0) == "  no box of probability 0.1 or more"
            for (kind, x0, y0, wx, wy), share in zip(
                predicted.boxes.boxes[probable], predicted.boxes.probability[probable], strict=True
            ):
                name = ("stem", "internal loop", "hairpin")[kind - 1]
                place = f"rows {x0 + 1}-{x0 + wx}, columns {y0 + 1}-{y0 + wy}"
                assert lines.pop(0) == f"  {share:.2f} {name}: {place}"
        assert not lines


@pytest.mark.slow
def test_predictions_of_a_users_sequences(workdir):
    trained = cvae_jax.load(str(workdir))
    predictions = prediction.predict(trained, SEQUENCES, 6, jax.random.key(0))
    assert [predicted.sequence for predicted in predictions] == ["GGGGAAAACCCC", "GCGCAAAAGUGC", "GGGAAAUCC"]
    for predicted in predictions:
        length = len(predicted.sequence)
        assert predicted.probabilities.shape == (length, length) and not np.tril(predicted.probabilities).any()
        assert predicted.probabilities.min() >= 0 and predicted.probabilities.max() <= 1
        assert len(predicted.structures) == 6
        for pairs in (predicted.pairs, *predicted.structures):
            parsed, num_dropped = boxes.parse(boxes.dot_bracket(pairs, length))
            assert parsed.tolist() == pairs.tolist() and num_dropped == 0
        assert (np.diff(predicted.boxes.probability) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seed=-1", "GGGAAACCC"], "--seed=-1 must be at least 0 and below 2^32"),
        (["--seed=4294967296", "GGGAAACCC"], "--seed=4294967296 must be at least 0 and below 2^32"),
        (["--num_samples=0", "GGGAAACCC"], "num_samples=0 must be at least 1"),
        (["GGGAAACCC", "GGGAAXCCC"], "'X' at position 6"),
        (["G" * 17], "17 bases, more than the 16"),
        ([""], "empty"),
    ],
)
def test_what_cannot_be_folded(workdir, arguments, line):
    said = command("fold", f"--workdir={workdir}", *arguments)
    assert said.startswith("error: ") and line in said


@pytest.mark.slow
def test_a_model_of_something_else(small_run):
    assert "is no model of RNA; train configs/rna_boxes.py" in command("fold", f"--workdir={small_run}", "GGGAAACCC")
