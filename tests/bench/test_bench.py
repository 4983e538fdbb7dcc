"""What `stmdit bench` compares is equal, what it counts is right, and its report says what was left out."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import tiny_transformer
from diffusers import DDIMScheduler

from napari_stmdit.bench.comparisons import (
    PLAIN,
    Settings,
    against_straightforward,
    run_bench,
    straightforward,
    waiting,
)
from napari_stmdit.bench.stages import (
    PeakMemory,
    flops,
    in_dtype,
    interleaved,
    matmul_peak,
    random_base,
    sampling,
    timed,
)
from napari_stmdit.cli.bench import _batches, print_report
from napari_stmdit.devices import WAITING
from napari_stmdit.errors import RequestError, StmditError, SynthesisError
from napari_stmdit.model.sampling import denoise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from stock import StockTransformer, stock_of

CPU = torch.device("cpu")
TWO_BLOCKS = {
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "morphology_dim": 24,
    "expression_dim": 8,
}
SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}


def small(device):
    return random_base(device, TWO_BLOCKS, SMALL_VAE)


@pytest.fixture(scope="module")
def subject():
    return small(CPU)


@pytest.mark.parametrize("batched", [False, True])
def test_diffusers_own_blocks_in_the_straightforward_loop_give_what_ours_gives(subject, batched):
    conditions, noise = subject.conditions(2), subject.noise(2)
    *_, (_, ours) = denoise(subject.transformer, subject.scheduler, noise, conditions, subject.guidance, subject.steps)
    stock = StockTransformer(subject.transformer)
    theirs = straightforward(
        stock, subject.scheduler, noise, conditions, subject.guidance, subject.steps, batched=batched
    )
    assert float((ours - theirs).abs().max()) < 1e-4 * float(ours.std())
    other = straightforward(stock, subject.scheduler, noise, subject.conditions(2), subject.guidance[:2], subject.steps)
    assert float((ours - other).abs().max()) > 0.01  # a branch less is another image: the measure would notice


def test_the_straightforward_loop_heeds_the_time_of_a_scheduler_that_needs_it(subject):
    given = (DDIMScheduler(), subject.noise(1), subject.conditions(1), subject.guidance, 4)
    *_, (_, ours) = denoise(subject.transformer, *given)
    assert float((ours - straightforward(subject.transformer, *given)).abs().max()) < 1e-4 * float(ours.std())


def test_stock_blocks_are_refused_where_they_are_not_the_same():
    with pytest.raises(SynthesisError, match="qk_norm"):
        StockTransformer(tiny_transformer())


def test_operations_of_a_product_and_of_attention_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert flops(lambda: a @ b) == 2 * 8 * 16 * 4
    q = torch.randn(1, 2, 32, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert flops(lambda: attention(q, q, q)) == 2 * 2 * 2 * 32 * 32 * 8


def test_works_take_turns_and_a_long_one_is_done_once():
    turns = []
    found = interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, CPU, 2)
    assert turns == ["a", "b"] * 3 and {name: time.rounds for name, time in found.items()} == {"a": 2, "b": 2}
    assert timed(lambda: None, CPU, seconds=-1.0).rounds == 0
    assert timed(lambda: None, CPU, seconds=1.0, rounds=4).rounds == 4


def test_peaks_are_positive():
    assert matmul_peak(CPU, torch.float32, 0.01) > 1e8
    memory = PeakMemory(CPU)
    held = torch.ones(40_000_000)
    assert memory.read() > held.nbytes / 1e6


@pytest.mark.parametrize("plain_net", [stock_of, lambda transformer: transformer])
def test_a_comparison_says_how_far_the_images_are_apart(subject, plain_net):
    found = against_straightforward(subject, torch.bfloat16, 1, plain_net)
    assert found["branches"] == 3
    assert found["largest_difference_in_float32"] < 1e-4
    assert set(found["times faster: ours, bfloat16"]) == set(found["seconds"]) - {"ours, bfloat16"}
    assert PLAIN in found["seconds"]


def test_in_dtype_rounds_a_copy(subject):
    half = in_dtype(subject, torch.bfloat16)
    assert half.dtype == half.vae.dtype == torch.bfloat16
    assert subject.dtype == subject.vae.dtype == torch.float32


def test_a_batch_that_would_take_too_long_is_named(subject):
    rows, left_out = sampling(subject, [1, 4096], 1e12, 0.001)
    assert [row.batch for row in rows] == [1] and [one.batch for one in left_out] == [4096]
    assert rows[0].gflop > 0 and rows[0].utilisation > 0


def test_a_single_denoising_step_can_be_measured(subject):
    (row,), _ = sampling(dataclasses.replace(subject, steps=1), [1], 1e12, 0.001)
    assert row.gflop > 0


@pytest.fixture(scope="module")
def measured(tiny_checkpoint):
    """The report of a checkpoint and of a random model, as JSON, and the stages that were named."""
    told: list[str] = []
    settings = Settings(str(tiny_checkpoint), True, "cpu", (1, 2), 0.02, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_stmdit.bench.comparisons.SIDE_UM", 200.0)  # some dozens of windows of 64 px
        return json.loads(json.dumps(run_bench(settings, told.append, small))), told


def test_the_report_of_a_checkpoint_and_of_a_random_model(measured):
    report, told = measured
    checkpoint, base = report["models"]
    assert {row["stage"] for row in checkpoint["around"]} >= {"plan", "encode morphology", "paste"}
    found = checkpoint["waiting"]
    assert found["setting"] == WAITING and found["patches"] == 8
    for name in ("alone", "beside a busy process"):
        row = found[name]
        # seconds are rounded to three places, which a fast computer sees in their ratio
        low, high = ((row["spinning"] + off) / (row["sleeping"] - off) for off in (-0.0005, 0.0005))
        assert low - 0.005 <= row["times_faster"] <= high + 0.005 and len(row["load"]) == 2
    assert set(checkpoint["runs"]["presets"]) == {"exact", "fast", "draft"} and "16" in checkpoint["runs"]["seconds"]
    assert base["comparison"]["steps"] == 2 and "around" not in base
    for name in ("region", "spot"):  # the next picture starts from the noise of the first
        row = checkpoint["editing"][name]
        assert row["taken_to_noise"]["first"] > 0 and row["taken_to_noise"]["next"] == 0
        assert row["first"] > 0 and row["next"] > 0
    assert {row["stage"] for row in base["stages"]} == {"sample", "decode"}
    assert any("straightforward" in what for what in told)


def test_a_process_that_ends_before_its_time_is_said_in_words(tmp_path, capfd):
    with pytest.raises(StmditError, match="ended before its time"):
        waiting(str(tmp_path / "no checkpoint"), 1)


def test_a_report_is_printed_as_tables(measured, capsys):
    print_report(measured[0])
    printed = capsys.readouterr().out
    assert "of peak" in printed and "beside a busy process" in printed and "another strength" in printed


def test_batches_that_are_no_numbers_are_refused():
    with pytest.raises(RequestError, match="between commas"):
        _batches("1,x")


@pytest.mark.nightly  # `stmdit bench` with its tables, and with --json, is run by test_docs_commands each time
def test_the_command_as_a_process_prints_one_json_object(tiny_checkpoint):
    command = [sys.executable, "-m", "napari_stmdit.cli", "bench", "--checkpoint", str(tiny_checkpoint)]
    command += ["--device", "cpu", "--batches", "1", "--seconds", "0.05", "--rounds", "1", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["models"][0]["comparison"]["steps"] == 4
