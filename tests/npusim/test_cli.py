import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import save_file

from models.quantize import QuantizedModel
from models.stats import CalibrationStats, weights_sha256
from models.workloads import get_workload
from npusim import engine
from npusim.cli import app, main
from npusim.clips import Stages
from npusim.commands.shared import progress
from npusim.explain import explain
from npusim.isa import BY_MNEMONIC
from npusim.program_file import save_program
from npusim.report import write_run
from tests.npusim.strategies import small_program

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands] + ["hw"]


@pytest.fixture
def machine_file(repository):
    return repository / "hwconfigs" / "tiny_8x8.yaml"


@pytest.fixture
def edited_machine(machine_file, tmp_path):
    """Writes the tiny machine's file with one text replaced."""

    def edit(old, new):
        text = machine_file.read_text()
        assert old in text
        path = tmp_path / "machine.yaml"
        path.write_text(text.replace(old, new))
        return path

    return edit


@pytest.fixture
def checkpoint(tmp_path):
    """Writes the emoji-shaped checkpoint of a very small model, its tensors edited first."""

    def write(edit):
        model = get_workload("tiny").load_model()
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        edit(tensors)
        path = tmp_path / "weights.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(get_workload("tiny").config)})
        return path

    return write


def refused(capsys, tmp_path, *arguments):
    """Run a command that must be refused; return its message."""
    before = sorted(tmp_path.rglob("*"))
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
    return err


def refused_run(capsys, tmp_path, machine, *options):
    command = ("run", "--workload", "tiny", "--hw", machine, "--out", tmp_path / "out", *options)
    message = refused(capsys, tmp_path, *command)
    assert message.startswith("error: ")
    return message


def test_run_prints_one_screen_and_writes_the_folder(capsys, tmp_path, machine_file, tiny_result):
    c = tiny_result.config
    options = ["--prompt", c.prompt, "--seed", str(c.seed), "--verify", "all", "--dump-passes", "--method", "cw_tw"]
    out = tmp_path / "run"
    assert main(["run", "--workload", "tiny", "--hw", str(machine_file), "--out", str(out), *options]) == 0
    text, err = capsys.readouterr()
    assert "MAC utilisation" in text
    assert f"written to {out}" in text
    assert "\x1b" not in text + err
    assert err == ""
    write_run(tiny_result, tmp_path / "library")
    for path in (tmp_path / "library").rglob("*.csv"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_run_ends_with_1_when_engine_and_reference_differ(capsys, tmp_path, machine_file, monkeypatch):
    monkeypatch.setitem(engine.EXECUTORS, "table", lambda state, ins: None)
    out = tmp_path / "run"
    assert main(["run", "--workload", "tiny", "--hw", str(machine_file), "--out", str(out)]) == 1
    assert "DIFFER: prologue, instruction" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["bit_exact"]["equal"] is False


def test_stages_one_by_one(capsys, tmp_path, machine_file, tiny):
    quantized, program = tmp_path / "q.safetensors", tmp_path / "p.npu"
    assert main(["quantize", "--workload", "tiny", "--out", str(quantized)]) == 0
    passes = ["--dump-passes", str(tmp_path / "passes")]
    assert main(["compile", str(quantized), "--hw", str(machine_file), "-o", str(program), *passes]) == 0
    save_program(tiny.program, tmp_path / "library.npu")
    assert program.read_bytes() == (tmp_path / "library.npu").read_bytes()
    assert len(list((tmp_path / "passes").glob("*.txt"))) > 3
    assert main(["verify", str(program)]) == 0
    assert "legal" in capsys.readouterr().out


def test_disassembly_assembles_to_the_same_words(capsys, tmp_path, tiny):
    program, text, words = tmp_path / "p.npu", tmp_path / "step.s", tmp_path / "step.bin"
    save_program(tiny.program, program)
    assert main(["disasm", str(program), "--part", "step"]) == 0
    text.write_text(capsys.readouterr().out)
    assert main(["asm", str(text), "-o", str(words)]) == 0
    np.testing.assert_array_equal(np.frombuffer(words.read_bytes(), "<u4").reshape(-1, 32), tiny.program.step)
    capsys.readouterr()
    assert main(["disasm", str(words)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == text.read_text().splitlines()[1:]
    # What a file is, its content says.
    words.rename(tmp_path / "step.npu")
    program = program.rename(tmp_path / "program")
    assert main(["disasm", str(tmp_path / "step.npu")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == text.read_text().splitlines()[1:]
    message = refused(capsys, tmp_path, "disasm", tmp_path / "step.npu", "--part", "step")
    assert "step.npu: instruction words have no parts; allowed: --part with a program file only" in message
    assert main(["disasm", str(program)]) == 0
    assert re.findall(r"^# (\w+): (\d+)", capsys.readouterr().out, re.M) == [
        ("prologue", str(len(tiny.program.prologue))),
        ("step", str(len(tiny.program.step))),
    ]


def test_rtl_of_a_machine(capsys, tmp_path, edited_machine):
    path = edited_machine("dataflow: weight_stationary", "dataflow: output_stationary")
    out = tmp_path / "r t l"
    for _ in range(2):  # the second replaces the first
        assert main(["rtl", "--hw", str(path), "--out", str(out)]) == 0
        files = sorted(out.iterdir())
        assert capsys.readouterr().out == (
            f"{out}: {len(files)} files, output-stationary matrix unit of 8 x 8 cells\n"
            f"check with: cd '{out}' && verilator --lint-only --top-module npu_matmul -f npu.f\n"
        )
    assert {"npu_machine.sv", "npu_matmul.sv", "npu.f"} <= {file.name for file in files}
    assert "localparam bit OUTPUT_STATIONARY = 1;" in (out / "npu_machine.sv").read_text()


def test_rtl_is_refused_its_folder(capsys, tmp_path, machine_file, edited_machine):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "npu_matmul.sv").write_text("")
    for hw, out, message in (
        (machine_file, "file", "file: exists and is not a folder; allowed: a new folder, an empty one"),
        (machine_file, "file/out", "cannot be made"),
        (machine_file, "mine", "mine: holds files but no npu.f"),
        (edited_machine("rows: 8", "rows: 0"), "new", "mac_array.rows"),
    ):
        assert message in refused(capsys, tmp_path, "rtl", "--hw", hw, "--out", tmp_path / out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_one_screen_with_an_example(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: npusim {command} " in " ".join(text.split())
    assert len(text.splitlines()) <= 45


def test_json_is_one_document_and_nothing_else(capsys, tmp_path, machine_file, small):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"schema_version: 1\nworkload: tiny\nhw: {machine_file}\naxes: {{method: [nonsense]}}\n")
    one = ["--workload", "tiny", "--hw", str(machine_file)]
    for command, key in (
        (["run", *one, "--timing-only", "--out", str(tmp_path / "run")], "cost"),
        (["swap", *one, "--methods", "tsw", "--ranges", "1", "--policies", "shadow", "--out", str(tmp_path / "s")], 0),
        (["sweep", str(sweep), "--out", str(tmp_path / "sweep")], 0),
        (["verify", str(small)], "crosscheck"),
        (["hw", "list"], 0),
        (["hw", "show", str(machine_file)], "derived"),
        (["compare", str(tmp_path / "run"), str(tmp_path / "run")], "layers"),
    ):
        assert main([*command, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        json.loads(out)[key]
    assert json.loads((tmp_path / "run" / "run.json").read_text())


def test_calibrate_makes_what_the_library_makes(capsys, tmp_path):
    out = tmp_path / "stats.safetensors"
    assert main(["calibrate", "--workload", "tiny", "--prompts", "1", "--steps", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(" points, 1 captions, 2 steps\n")
    found = CalibrationStats.load(out)
    assert (found.steps, len(found.captions)) == (2, 1)
    found.require_weights(weights_sha256(get_workload("tiny").load_model()))
    quantized = ["quantize", "--workload", "tiny", "--steps", "2", "--calibration", str(out), "--out"]
    assert main([*quantized, str(tmp_path / "q.safetensors")]) == 0


def test_calibrations_that_are_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for out, options, message in (
        ("x", ["--workload", "emojo"], "nearest: emoji"),
        ("x", ["--prompts", "0"], "prompts=0"),
        ("x", ["--steps", "1"], "num_sampling_steps=1"),
        ("x", ["--text", tmp_path / "none"], "none"),
        ("file/x", [], "cannot be made"),
        (".", [], "is a folder; allowed: a file to write"),
    ):
        command = ("calibrate", "--workload", "tiny", "--out", tmp_path / out, *options)
        assert message in refused(capsys, tmp_path, *command)


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "emojy"], "workload 'emojy' is unknown; allowed: emoji, tiny, "),
        (["--method", "cwtw"], "method 'cwtw' is unknown; allowed: dynamic, cw_tw, tsw, "),
        (["--method", "fp16"], "method 'fp16' is floating-point and runs in torch only; allowed: dynamic, cw_tw, "),
        (
            ["--workload", "tiny", "--method", "dynamic"],
            "quantizes its input at run time; vector_unit",
        ),
        (["--prompt", "rain bow"], "'rainbow'"),
        (["--verify", "al"], "did you mean 'all'"),
        (["--act-bits", "5"], "act_bits=5: allowed: 4, 6, 8, 16; nearest: 4"),
        (["--attention-bits", "4"], "attention_bits = 4: allowed 8, 16"),
        (["--save-seconds", "-1"], "save_seconds = -1.0: allowed seconds from 0 on"),
        (["--save-seconds", "nan"], "save_seconds = nan: allowed seconds from 0 on"),
        (["--hw", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_unknown_names_and_values(capsys, tmp_path, machine_file, options, message):
    assert message in refused_run(capsys, tmp_path, machine_file, *options)


def test_only_near_names_are_suggested(capsys, tmp_path, machine_file):
    for option, name, near in (("--method", "cwtw", "cw_tw"), ("--workload", "emojy", "emoji")):
        assert f"; nearest: {near}" in refused_run(capsys, tmp_path, machine_file, option, name)
        assert "nearest" not in refused_run(capsys, tmp_path, machine_file, option, "nope")


def test_a_remark_is_told_once_and_is_no_stage(capsys, monkeypatch):
    monkeypatch.setattr("npusim.clips.first_use", lambda: True)
    with progress() as notify:
        stages = Stages(notify)
        with stages.stage("compile"):
            pass
    assert capsys.readouterr().err.splitlines() == ["compiling kernels, once for this version..."]
    monkeypatch.setattr("npusim.clips.first_use", lambda: False)
    with progress() as notify:
        Stages(notify)
    assert capsys.readouterr().err == ""


def test_unknown_option_and_command(capsys, tmp_path):
    assert "--worklaod" in refused(capsys, tmp_path, "run", "--worklaod", "tiny")
    assert "swim" in refused(capsys, tmp_path, "swim")
    assert "'--act-bits'" in refused(capsys, tmp_path, "run", "--act-bits", "eight")


def test_yaml_typo(capsys, tmp_path, edited_machine):
    path = edited_machine("capacity_bytes: 65536", "capcity_bytes: 65536")
    message = refused_run(capsys, tmp_path, path)
    assert re.search(
        r"machine\.yaml:\d+: sram\.capcity_bytes: unknown field; did you mean `sram\.capacity_bytes`", message
    )


def test_machine_too_small(capsys, tmp_path, edited_machine):
    message = refused_run(capsys, tmp_path, edited_machine("capacity_bytes: 65536", "capacity_bytes: 1024"))
    assert re.search(r"machine (is )?too small.* sram\.capacity_bytes", message)
    message = refused_run(capsys, tmp_path, edited_machine("capacity_bytes: 8192", "capacity_bytes: 512"))
    assert re.search(r"machine (is )?too small.* param_memory\.capacity_bytes", message)


@pytest.mark.parametrize("command", ["disasm", "verify"])
def test_truncated_and_altered_programs(capsys, tmp_path, tiny, command):
    path = tmp_path / "p.npu"
    save_program(tiny.program, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "p.npu: truncated or damaged program file" in refused(capsys, tmp_path, command, path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "p.npu: contents do not match their SHA-256" in refused(capsys, tmp_path, command, path)
    path.write_bytes(b"")
    assert "p.npu: " in refused(capsys, tmp_path, command, path)
    assert "no such program file" in refused(capsys, tmp_path, command, tmp_path / "q.npu")


def test_damaged_checkpoints(capsys, tmp_path, machine_file, checkpoint):
    def lose(tensors):
        del tensors["blocks.1.mlp.fc1.weight"]

    def bend(tensors):
        tensors["final_layer.linear.bias"] = tensors["final_layer.linear.bias"][1:].clone()

    path = checkpoint(lose)
    message = refused_run(capsys, tmp_path, machine_file, "--checkpoint", path)
    assert "weights.safetensors: tensor 'blocks.1.mlp.fc1.weight' is missing" in message
    message = refused_run(capsys, tmp_path, machine_file, "--checkpoint", checkpoint(bend))
    assert re.search(r"tensor 'final_layer\.linear\.bias' has shape \(31,\); expected \(32,\)", message)
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable safetensors file" in refused_run(capsys, tmp_path, machine_file, "--checkpoint", path)


def test_a_sound_checkpoint_takes_the_place_of_the_workloads_own(capsys, tmp_path, checkpoint):
    path = checkpoint(lambda tensors: None)
    out = tmp_path / "q.safetensors"
    assert main(["quantize", "--workload", "tiny", "--checkpoint", str(path), "--out", str(out)]) == 0
    assert out.exists()


def test_bad_files_for_the_other_commands(capsys, tmp_path, machine_file):
    source = tmp_path / "bad.s"
    source.write_text("# a comment\nmatmull m=1\n")
    assert "bad.s:2: no instruction 'matmull'" in refused(capsys, tmp_path, "asm", source, "-o", tmp_path / "x.bin")
    source.write_bytes(b"\xff\xfe")
    assert "not a readable text file" in refused(capsys, tmp_path, "asm", source, "-o", tmp_path / "x.bin")
    (tmp_path / "odd.bin").write_bytes(bytes(100))
    assert "100 bytes; allowed" in refused(capsys, tmp_path, "disasm", tmp_path / "odd.bin")
    assert "no such program file" in refused(capsys, tmp_path, "disasm", tmp_path / "none.bin")
    command = ("compile", tmp_path / "odd.bin", "--hw", machine_file, "-o", tmp_path / "p.npu")
    assert "odd.bin" in refused(capsys, tmp_path, *command)
    for line, message in (
        ("barrier unit=load", "bad.s:1: barrier: unit = load: allowed vector"),
        (
            "load row_bytes=1 rows=1 planes=1 local_addr=65536",
            "bad.s: step: instruction 0 (load) of layer (no name): ",
        ),
        ("load row_bytes=1 rows=1 planes=1 base=1", "dram bytes 0..1 lie outside its 0 bytes"),
        ("load row_bytes=1 rows=1 planes=1 dram_addr=0xffffffffff", "needs 1099511627776 bytes of DRAM; the machine's"),
    ):
        source.write_text(line)
        assert message in refused(capsys, tmp_path, "asm", source, "--hw", machine_file, "-o", tmp_path / "x.npu")
    source.write_text("barrier unit=load\n")
    assert "cannot be written" in refused(capsys, tmp_path, "asm", source, "-o", source / "x.bin")


def test_quantize_takes_every_setting_of_a_method(capsys, tmp_path):
    overrides, out = tmp_path / "o.yaml", tmp_path / "q.safetensors"
    overrides.write_text("overrides: [{layers: [mlp.fc2], weight_bits: 8, act_bits: 16}]")
    settings = ["--method", "tsq", "--weight-bits", "4", "--ranges", "0,1", "--alpha", "0.7"]
    assert main(["quantize", "--workload", "tiny", *settings, "--overrides", str(overrides), "--out", str(out)]) == 0
    assert "22 linears, 2 time range(s), alpha 0.7" in capsys.readouterr().out
    found = QuantizedModel.load(out)
    assert (found.method, found.weight_bits, found.alpha) == ("tsq", 4, 0.7)
    assert found.range_of_step.tolist() == [0, 1, 1, 1]
    linear = found.linears["blocks.1.mlp.fc2"]
    assert (linear.weights[1].bits, linear.act_bits.tolist()) == (8, [16, 16])
    assert main(["quantize", "--workload", "tiny", "--steps", "6", "--method", "tsw", "--out", str(out)]) == 0
    assert "6 time range(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranges", "3"], "ranges=3: allowed of 4 steps: 1,2,4; nearest: 2"),
        (["--ranges", "x"], "ranges='x': allowed is a number, as 4, or the first step of each, as 0,5,12"),
        (["--alpha", "0.5"], "alpha=0.5: method 'cw_tw' does not smooth"),
        (["--overrides", "none.yaml"], "none.yaml: not a readable text file"),
        (["--steps", "1"], "num_sampling_steps=1: must be from 2 to 1000"),
    ],
)
def test_quantize_settings_that_are_refused(capsys, tmp_path, options, message):
    command = ("quantize", "--workload", "tiny", "--out", tmp_path / "q.safetensors", *options)
    assert message in refused(capsys, tmp_path, *command)


def test_out_is_not_a_folder(capsys, tmp_path, machine_file):
    (tmp_path / "out").write_text("")
    assert "exists and is not a folder" in refused_run(capsys, tmp_path, machine_file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "emojy"], "workload 'emojy' is unknown; allowed: emoji, tiny, "),
        (["--method", "cwtw"], "method 'cwtw' is unknown; allowed: dynamic, cw_tw, tsw, "),
        (["--captions", "all"], "captions = 'all': allowed evaluation, sheet"),
        (["--act-bits", "5"], "act_bits=5: allowed: 4, 6, 8, 16; nearest: 4"),
        (["--attention-bits", "4"], "attention_bits = 4: allowed 8, 16"),
        (["--hw", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_evaluations_that_are_refused(capsys, tmp_path, machine_file, options, message):
    command = ("evaluate", "--workload", "tiny", "--hw", machine_file, "--out", tmp_path / "out")
    assert message in refused(capsys, tmp_path, *command, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tables", "all", "--method", "asq"], "--method: allowed without --tables only"),
        (["--tables", "I", "--attention-bits", "8"], "--attention-bits: allowed without --tables only"),
        (["--clips", "8"], "--clips: allowed with --tables only"),
        (["--force"], "--force: allowed with --tables only"),
        (["--tables", "I;II"], "tables = 'I;II': allowed all, or some of I, II, III, IV, V, integer"),
        (["--tables", "I", "--clips", "99"], "clips = 99: allowed 2..32"),
        (["--tables", "I", "--cell", "x"], "cell = 'x': not of tables I; nearest: "),
        (["--tables", "I", "--workload", "tiny"], "workload 'tiny' has no autoencoder"),
        (["--tables", "integer", "--hw", "no/such.yaml"], "no/such.yaml"),
        ([], "--workload is missing; without --tables it is needed"),
        (["--workload", "tiny"], "--hw is missing; without --tables it is needed"),
    ],
)
def test_tables_that_are_refused(capsys, tmp_path, options, message):
    assert message in refused(capsys, tmp_path, "evaluate", "--out", tmp_path / "out", *options)


def test_an_evaluation_is_refused_its_folder_before_anything_is_computed(capsys, tmp_path, machine_file, monkeypatch):
    monkeypatch.setattr("npusim.evaluate.load_machine", lambda path: pytest.fail("computed before the check"))
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for out, message in (
        ("file", "file: exists and is not a folder"),
        ("file/out", "cannot be made"),
        ("run", "run: holds files but no evaluation.json; allowed: a new folder, an empty one, or that of an earlier "),
    ):
        command = ("evaluate", "--workload", "tiny", "--hw", machine_file, "--out", tmp_path / out)
        assert message in refused(capsys, tmp_path, *command)


def test_compile_is_refused_its_files_before_anything_is_written(capsys, tmp_path, machine_file):
    quantized, passes = tmp_path / "q.safetensors", tmp_path / "passes"
    assert main(["quantize", "--workload", "tiny", "--out", str(quantized)]) == 0
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for out, dump, message in (
        (tmp_path / "p.npu", tmp_path / "file", "file: exists and is not a folder"),
        (tmp_path / "p.npu", tmp_path / "file" / "passes", "cannot be made"),
        (tmp_path / "file" / "p.npu", passes, "cannot be made"),
        (tmp_path, passes, "is a folder; allowed: a file to write"),
    ):
        command = ("compile", quantized, "--hw", machine_file, "-o", out, "--dump-passes", dump)
        assert message in refused(capsys, tmp_path, *command)


def test_compile_asks_for_no_text_that_nobody_wants(tmp_path, machine_file, tiny, monkeypatch):
    seen = []

    def compile_model(quantized, machine, attention_bits, dump=None, factored=False):
        seen.append(dump)
        return tiny.program

    monkeypatch.setattr("compiler.compile_model", compile_model)
    quantized = tmp_path / "q.safetensors"
    assert main(["quantize", "--workload", "tiny", "--out", str(quantized)]) == 0
    assert main(["compile", str(quantized), "--hw", str(machine_file), "-o", str(tmp_path / "p.npu")]) == 0
    assert seen == [None]


def test_interrupted_with_ctrl_c(repository, tmp_path, machine_file):
    """A new process: the signal must reach the program, not the test runner."""
    code = (
        "import os, signal, sys, npusim.swapped\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "def slow(*args, **kw):\n    print('ready', flush=True)\n    signal.pause()\n"
        "npusim.swapped.compile_model = slow\n"
        "from npusim.cli import app, main\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = ["run", "--workload", "tiny", "--hw", str(machine_file), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.npu"
    save_program(small_program(), path)
    return path


def test_verify_runs_executors_and_orders(capsys, small):
    assert main(["verify", str(small), "--steps", "2", "--orders", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{small}: legal, 1 + 6 instructions",
        "engine = reference in every byte, prologue and 2 steps",
        "3 random orders give the same bytes, prologue and 1 step",
    ]
    assert main(["verify", str(small), "--steps", "0", "--orders", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "engine = reference in every byte, prologue and 0 steps",
        "3 random orders give the same bytes, prologue and 1 step",
    ]
    assert main(["verify", str(small), "--steps", "0"]) == 0
    assert capsys.readouterr().out == f"{small}: legal, 1 + 6 instructions\n"


def test_verify_ends_with_1_where_the_executors_differ(capsys, small, monkeypatch):
    def slip(state, ins):
        BY_MNEMONIC["ewlin"].execute(state, ins)
        state.sram[ins.out_addr + 20] ^= 1

    monkeypatch.setitem(engine.EXECUTORS, "ewlin", slip)
    assert main(["verify", str(small)]) == 1
    message = (
        r"DIFFER: step 0, instruction 3 \(ewlin, layer sampler.add\): sram byte 20 \(i32\) is -?\d+ in the engine, "
    )
    assert re.search(
        message + r"-?\d+ in the reference; element \[0, 0, 5\] of out \[1, 1, 16\]", capsys.readouterr().out
    )


def test_requests_about_a_program_that_are_refused(capsys, tmp_path, machine_file, small):
    for arguments, message in (
        (("verify", small, "--steps", "3"), "small.npu: steps = 3: the program has 2; allowed 0..2"),
        (("verify", small, "--seed", "-1"), "small.npu: seed = -1: allowed: at least 0"),
        (("verify", small, "--orders", "-1"), "small.npu: orders = -1: allowed: at least 0"),
        (("verify", small, "--tosa", "--seed", "1"), "--steps, --orders and --seed are allowed without --tosa only"),
        (("verify", small, "--block", "1"), "--step, --attention-bits and --factored are allowed with --tosa only"),
        (("explain", small, "6"), "small.npu: step has no instruction 6; allowed 0..5"),
        (("explain", small, "-1"), "small.npu: step has no instruction -1; allowed 0..5"),
        (("explain", small, "0", "--prat", "step"), "unexpected extra argument"),
        (
            ("compile", tmp_path, "--hw", machine_file, "-o", small),
            "did you mean",
        ),
        (("disasm", tmp_path), f"{tmp_path}: is a folder; did you mean {tmp_path / 'program.npu'}?"),
        (("asm", tmp_path, "-o", small), f"{tmp_path}: not a readable text file (Is a directory)"),
        (("explain", small, "0", "--part", "steps"), "small.npu: part = 'steps': allowed prologue, step"),
        (("disasm", small, "--part", "foo"), "small.npu: part = 'foo': allowed all, prologue, step"),
        (("explain", tmp_path / "none.npu", "0"), "none.npu: no such program file"),
    ):
        assert message in refused(capsys, tmp_path, *arguments)


def test_explain_prints_what_the_library_says(capsys, small):
    assert main(["explain", str(small), "3", "--step", "1"]) == 0
    assert capsys.readouterr().out == explain(small_program(), 3, step=1)
