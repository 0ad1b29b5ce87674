"""The search for smoothing exponents: resumed where it stopped, and used where nothing else is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.alpha import BITS, SEARCH_METRICS, SEARCHED, Reference, latent_sqnr_db, main, search, step_sqnr_db
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.prepare import quantize_for
from models.quantize import quantize
from models.quantize.alpha import ALPHAS, AlphaTable, Trial
from models.quantize.structure import DEFAULT_ALPHA
from models.sample import denoise, fakequant_predictor, float_predictor, replay
from models.stats import weights_sha256
from models.stdit import STDiT
from models.workloads import get_workload

EMOJI = get_workload("emoji")
TINY = get_workload("tiny")
SHORT = dataclasses.replace(TINY, search_captions=TINY.search_captions[:2], search_seeds=TINY.search_seeds[:2])


@pytest.fixture(scope="module")
def reference(model: STDiT) -> Reference:
    return Reference.of(model, SHORT)


def test_metrics_equal_clips_sampled_one_by_one(model: STDiT, reference: Reference) -> None:
    """The search runs all clips as one batch; here each caption has a run of its own."""
    fake = FakeQuantSTDiT(model, quantize(model, TINY.load_stats(), "tsq"))
    steps, latents = [], []
    for index, (caption, seed) in enumerate(zip(SHORT.search_captions, SHORT.search_seeds, strict=True)):
        sampler, text = TINY.sampler(), (*TINY.text(caption), model.y_embedder.y_embedding)
        noise = draw_noise(seed, TINY.latent_shape, 4)
        exact = denoise(float_predictor(model, sampler, *text), *noise, sampler)
        assert sqnr_db(exact.states, reference.states[:, index]) > 90
        predict = fakequant_predictor(fake, sampler, *text)
        steps += [sqnr_db(a, b) for a, b in zip(exact.eps, replay(predict, exact, sampler), strict=True)]
        latents.append(sqnr_db(exact.states[-1], denoise(predict, *noise, sampler).states[-1]))
    # Rounding decides a few grid points differently in a batch.
    assert step_sqnr_db(fake, reference) == pytest.approx(sum(steps) / len(steps), abs=0.5)
    assert latent_sqnr_db(fake, reference) == pytest.approx(sum(latents) / len(latents), abs=1.5)


def test_search_resumes_and_repeats_nothing(tmp_path: Path, model: STDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "alphas.json"
    calls: list[float] = []

    def metric(network: FakeQuantSTDiT, reference: Reference) -> float:
        calls.append(0.0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return float(len(calls))

    monkeypatch.setitem(SEARCH_METRICS, "step_sqnr_db", metric)
    with pytest.raises(KeyboardInterrupt):
        search(SHORT, ["asq"], [(8, 8)], out=out)
    assert [trial.alpha for trial in AlphaTable.load(out).trials] == [0.1, 0.2, 0.3]
    table = search(SHORT, ["asq"], [(8, 8)], out=out)
    assert len(calls) == 1 + len(ALPHAS)
    assert [trial.alpha for trial in table.trials] == list(ALPHAS)
    assert AlphaTable.load(out) == table
    assert table.weights_sha256 == weights_sha256(model)
    search(SHORT, ["asq"], [(8, 8)], out=out)
    assert len(calls) == 1 + len(ALPHAS)
    # Trials of other weights, or by another metric, are no use.
    dataclasses.replace(table, weights_sha256="0" * 64).save(out)
    search(SHORT, ["asq"], [(8, 8)], out=out)
    assert len(calls) == 1 + 2 * len(ALPHAS)


def test_best_ignores_suffixes_and_falls_back_to_eight_bits() -> None:
    trials = (Trial("tsq", 8, 8, 0.3, 30.0), Trial("tsq", 8, 8, 0.7, 31.0), Trial("tsq", 4, 8, 0.2, 20.0))
    table = AlphaTable("", "step_sqnr_db", trials)
    assert table.best("tsq", 8, 8) == 0.7
    assert table.best("tsq_dp_gptq", 4, 8) == 0.2
    assert table.best("tsq", 6, 16) == 0.7
    assert table.best("asq", 8, 8) is None


def test_found_exponents_are_used_for_their_weights_only(tmp_path: Path, model: STDiT) -> None:
    stats, path = TINY.load_stats(), tmp_path / "a.json"
    work = dataclasses.replace(TINY, alphas=path)
    trials = tuple(Trial(method, 8, 8, 0.9, 1.0) for method in SEARCHED)
    AlphaTable(stats.weights_sha256, "step_sqnr_db", trials).save(path)
    assert quantize_for(work, model, stats, "asq").alpha == 0.9
    assert quantize_for(work, model, stats, "asq", alpha=0.3).alpha == 0.3
    assert quantize_for(work, model, stats, "cw_tw").alpha is None
    assert quantize_for(work, model, stats, "dynamic").alpha is None
    AlphaTable("0" * 64, "step_sqnr_db", trials).save(path)
    assert quantize_for(work, model, stats, "asq").alpha == DEFAULT_ALPHA


def test_committed_exponents_belong_to_the_committed_weights() -> None:
    assert EMOJI.alphas is not None
    table = AlphaTable.load(EMOJI.alphas)
    assert table.weights_sha256 == weights_sha256(EMOJI.load_model()), "python -m models.alpha --workload emoji"
    for method in SEARCHED:
        assert table.best(method, *BITS[0]) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable file of smoothing exponents"),
        ("[]", "allowed are the fields weights_sha256, metric, trials"),
        ('{"weights_sha256": "", "metric": "", "trials": [{"method": "asq"}]}', r"trials\.0: allowed are the fields"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ModelError, match=rf"a\.json: {message}"):
        AlphaTable.load(tmp_path / "a.json")


def test_command_line_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "a.json")]
    for arguments, message in (
        (["--workload", "tiny"], "workload 'tiny' has no file of exponents of its own; give --out"),
        (
            ["--workload", "tiny", "--methods", "cw_tw", *out],
            "method='cw_tw': allowed: dynamic, asq, tsq, ssq, tsq_pot",
        ),
        (["--workload", "tiny", "--metric", "x", *out], "metric='x': allowed: step_sqnr_db, latent_sqnr_db"),
    ):
        assert main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
