"""What `gather bench` refuses before it measures anything: options, payloads, half a job."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gather_bench.bench.command import bench
from gather_bench.bench.payloads import PayloadError, payload
from gather_bench.demo import corpus
from gather_bench.demo import payloads as demo_payloads
from gather_bench.demo.evaluation import predict, recall_at_10
from gather_bench.demo.training import Trainer
from gather_core import Gatherer
from gather_core.exactness import difference


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--codec", "msgpakc"], "Did you mean 'msgpack'?"),
        (["--transport", "gloo", "--transport", "glooo"], "Did you mean 'gloo'?"),
        (["--payload", "metrisc"], "Did you mean 'metrics'?"),
        (["--payload", "bytes:many"], "'many' is not a size"),
        (["--payload", "skewed:1KiB"], "two sizes are needed"),
        (["--payload", "skewed:1KiB,much"], "'much' is not a size"),
        (["--payload", "math:no_such"], "cannot be imported"),
        (["--payload", "math:pi"], "no function of the rank"),
        (["--json", "no_such_folder/out.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_option_is_named_before_any_worker_starts(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gather_bench import local_ranks

    monkeypatch.setattr(local_ranks, "run_local_ranks", lambda *_: pytest.fail("workers were started"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.output
    assert told in done.output


@pytest.mark.parametrize(
    "arguments", [["--ranks", "0"], ["--ranks", "100000"], ["--ranks", "2,x"], ["--rounds", "0"], ["--calls", "0"]]
)
def test_a_number_out_of_range_is_refused(arguments: list[str]) -> None:
    app = typer.Typer()
    app.command()(bench)
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("line", ["raise SystemExit(0)", "raise ValueError('x')", "import no_such_module"])
def test_a_payload_module_that_does_not_import_is_an_error(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PayloadError, match="cannot be imported"):
        payload("leaving:make")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"MASTER_PORT": "1"}, "RANK=0, WORLD_SIZE=1 in the environment make this a rank of a launched job, but"),
        ({}, "MASTER_ADDR and MASTER_PORT are not set: start it with torchrun, or unset RANK and WORLD_SIZE"),
        ({"RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "are no numbers"),
        ({"RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "there is no such rank"),
    ],
)
def test_half_a_job_is_told_from_none(variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"RANK": "0", "WORLD_SIZE": "1"} | variables).items():
        monkeypatch.setenv(name, value)
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert told in done.output


def test_the_demos_payloads_are_what_its_own_training_and_evaluation_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [corpus.Pair(f"question {number}", f"the passage that answers {number}") for number in range(1100)]
    monkeypatch.setattr(corpus, "collect_pairs", lambda: pairs)
    demo_payloads._texts.cache_clear()
    try:
        train, held_out = demo_payloads._texts()
        with Gatherer() as gatherer:
            trainer = Trainer(train, gatherer, batch_size=32)
            trainer._loss(list(range(32)))
            recall_at_10(trainer.model, held_out, gatherer)
        assert difference(trainer.last_gathered, payload("demo_step")(0)) is None
        assert difference(trainer.last_gathered, payload("demo_step")(1)) is not None
        own = payload("demo_predictions")(1)
        assert own == predict(trainer.model, held_out, 1, 4)
        assert (len(own), {len(found) for found in own}) == (250, {10})
    finally:
        demo_payloads._texts.cache_clear()
