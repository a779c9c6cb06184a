"""What a merge writes, and what is left when it cannot end: bad inputs, kills, a full disk, a second merge."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zfu_lib.merging import methods
from zfu_lib.merging.engine import checkpoint, errors, plan, recipe, run

EACH = ({"weight": 0.5, "density": 0.5}, {"weight": 1, "density": 0.25})
SHARDS = 9_000  # bytes; 15 files


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def left(out: Path) -> list[str]:
    """Files of an unfinished merge."""
    return sorted(place.name for place in out.parent.glob(f".{out.name}.*"))


def made(bench: Any, shard_bytes: int = SHARDS, **more: Any) -> plan.Plan:
    return plan.make(recipe.parse(bench.text("ties", EACH, **more)), shard_bytes=shard_bytes)


@pytest.fixture
def spoilt(bench: Any) -> Any:
    """Put a value into the last tensor of a model that a merge reads."""

    def spoil(value: float) -> None:
        file = bench.places[2] / "model.safetensors"
        entry = checkpoint.read_header(file)["lm_head.weight"]
        with open(file, "r+b") as stream:
            stream.seek(entry.offset + 4 * 100)
            stream.write(np.float32(value).tobytes())

    return spoil


# What is written.


def test_the_output_is_a_model_that_transformers_loads(bench: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    (bench.places[0] / "generation_config.json").write_text('{"max_new_tokens": 7}')
    out = run.run(made(bench, dtype="bfloat16"), bench.out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    expected = methods.ties(bench.base, [bench.a, bench.b], [0.5, 1], [0.5, 0.25])
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(expected[name]).bfloat16()), name
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 7


def test_the_card_and_the_manifest_say_what_was_merged(bench: Any) -> None:
    (bench.places[0] / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    text = bench.text("ties", EACH)
    out = run.run(made(bench), bench.out)
    card = (out / "README.md").read_text()
    assert text in card
    assert (out / "recipe.yml").read_text() == text
    assert "a has no tokenizer.json: its tokenizer was not compared" in card
    shards = json.loads((out / run.MANIFEST).read_text())["shards"]
    assert len(shards) == 15
    for name, checksum in shards.items():
        assert checkpoint.digest(out / name) == checksum
        assert f"| {name} | `{checksum}` |" in card
    listed = {line.split()[1] for line in (out / checkpoint.SUMS).read_text().splitlines()}
    assert listed == {file.name for file in out.iterdir()} - {checkpoint.SUMS}
    assert checkpoint.verify(out) == len(listed)
    assert (out / "tokenizer.json").read_bytes() == (bench.places[0] / "tokenizer.json").read_bytes()


def test_a_merge_again_gives_the_same_bytes_and_can_be_merged_further(bench: Any, tools: Any, tmp_path: Path) -> None:
    first = content(run.run(made(bench), bench.out))
    assert content(run.run(made(bench), bench.out, threads=2)) == first
    text = tools.recipe_text("linear", None, {bench.out: {"weight": 1}})
    again = plan.make(recipe.parse(text))
    assert again.verified == 15
    further = checkpoint.load(run.run(again, tmp_path / "further"))
    for name, tensor in checkpoint.load(bench.out).items():
        np.testing.assert_array_equal(further[name], tensor)


def test_progress_counts_every_byte(bench: Any) -> None:
    told: list[tuple[int, int, str]] = []
    work = made(bench)
    run.run(work, bench.out, piece=1, progress=lambda *now: told.append(now))
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert told[-1][:2] == (work.bytes_written, work.bytes_written)
    assert {name for *_, name in told} == {job.name for job in work.jobs}


def test_whole_numbers_are_copied_where_all_models_agree(bench: Any, tools: Any) -> None:
    import safetensors.numpy

    for place in bench.places:
        held = checkpoint.load(place) | {"steps": np.arange(5)}
        safetensors.numpy.save_file(held, place / "model.safetensors")
    out = run.run(made(bench), bench.out)
    file = checkpoint.Checkpoint(out).entry("steps").file
    np.testing.assert_array_equal(safetensors.numpy.load_file(file)["steps"], np.arange(5))
    safetensors.numpy.save_file(held | {"steps": np.arange(5) + 1}, place / "model.safetensors")
    with pytest.raises(errors.DtypeError, match=r"'steps' holds I64 that differ between .*base and .*b"):
        run.run(made(bench), bench.out)


# What is read on the way.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_stops_the_merge_and_leaves_nothing(bench: Any, spoilt: Any, bad: float) -> None:
    spoilt(bad)
    with pytest.raises(errors.NotFiniteError, match=f"b: 'lm_head.weight' holds {bad} at 100"):
        run.run(made(bench), bench.out)
    assert not bench.out.exists()
    assert not left(bench.out)


def test_a_merge_that_leaves_the_range_of_its_type_is_refused_by_name(bench: Any, spoilt: Any) -> None:
    old = content(run.run(made(bench), bench.out))
    spoilt(1e6)
    run.run(made(bench), bench.out.with_name("wide"))
    with pytest.raises(errors.NotFiniteError, match="'lm_head.weight': the merge is not finite in F16: [0-9.]+"):
        run.run(made(bench, dtype="float16"), bench.out)
    assert content(bench.out) == old


def test_an_input_that_changes_meanwhile_is_noticed(bench: Any, spoilt: Any) -> None:
    with pytest.raises(errors.InputError, match="an input file changed"):
        run.run(made(bench), bench.out, progress=lambda *now: spoilt(2))
    assert not bench.out.exists()
    assert not left(bench.out)


def test_an_input_that_shrinks_meanwhile_is_noticed(bench: Any) -> None:
    work = made(bench)
    file = bench.places[2] / "model.safetensors"
    os.truncate(file, file.stat().st_size - 500)
    with pytest.raises(errors.FormatError, match="ended inside tensor"):
        run.run(work, bench.out)


# Where it may be written.


def test_what_is_no_merge_is_not_replaced(bench: Any) -> None:
    work = made(bench)
    bench.out.mkdir()
    (bench.out / "thesis.tex").write_text("years")
    with pytest.raises(errors.OutputError, match="not empty and no earlier merge; --force"):
        run.run(work, bench.out)
    run.run(work, bench.out, force=True)
    assert not (bench.out / "thesis.tex").exists()
    for place, words in ((bench.places[1], "holds a model"), (bench.folder, "holds a model")):
        with pytest.raises(errors.OutputError, match=words):
            run.run(work, place, force=True)
    (bench.folder / "file").write_text("")
    (bench.folder / "link").symlink_to(bench.out)
    for name in ("file", "link"):
        with pytest.raises(errors.OutputError, match="is not a folder"):
            run.run(work, bench.folder / name, force=True)
    with pytest.raises(errors.WriteError, match="file: File exists"):
        run.run(work, bench.folder / "file" / "out")


def test_two_merges_do_not_write_one_output(bench: Any) -> None:
    with open(bench.folder / ".out.lock", "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(errors.OutputError, match="another merge is writing out"):
            run.run(made(bench), bench.out)
    run.run(made(bench), bench.out)


def test_a_disk_without_room_is_refused_before_a_byte_is_written(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bench.folder)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(errors.SpaceError, match=r"has 0.00 GB free, the merge needs"):
        run.run(made(bench), bench.out)
    assert not bench.out.exists()
    assert not left(bench.out)


def test_a_disk_that_gets_full_leaves_the_old_output_and_what_can_be_resumed(bench: Any) -> None:
    """The limit on the size of a file stands for the full disk: the system refuses the write in the same way."""
    old = content(run.run(made(bench), bench.out))
    work = made(bench, SHARDS, parameters={"normalize": False})
    larger = sorted(shard.bytes for shard in work.shards)[-1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (larger - 1, limits[1]))
    try:
        with pytest.raises(errors.SpaceError, match=f"{os.strerror(errno.EFBIG)}; finished shards are kept, --resume"):
            run.run(work, bench.out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(bench.out) == old
    again: list[str] = []
    run.run(work, bench.out, resume=True, progress=lambda done, total, name: again.append(name))
    assert 0 < len(set(again)) < len(work.jobs)
    assert content(bench.out) == content(run.run(work, bench.folder / "undisturbed"))
    assert not left(bench.out)


# Kills and resuming.


def stopped(work: plan.Plan, out: Path, after: int, stop: type[BaseException] = KeyboardInterrupt) -> None:
    """Interrupt a merge after some tensors."""
    seen: set[str] = set()

    def progress(done: int, total: int, name: str) -> None:
        seen.add(name)
        if len(seen) > after:
            raise stop

    with pytest.raises(stop):
        run.run(work, out, progress=progress)


def test_kills_leave_the_old_output_or_the_new_one(tmp_path: Path) -> None:
    """A sample; ``python tests/merging/kills.py`` makes as many as one likes."""
    script = Path(__file__).with_name("kills.py")
    call = [sys.executable, str(script), str(tmp_path), "--random", "6", "--calls", "40"]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] >= 10
    assert counts["resumed"] > 0


def test_resuming_needs_the_same_merge(bench: Any) -> None:
    with pytest.raises(errors.ResumeError, match="no unfinished merge"):
        run.run(made(bench), bench.out, resume=True)
    stopped(made(bench), bench.out, 8)
    for other in (
        made(bench, dtype="bfloat16"),
        made(bench, 2 * SHARDS),
        plan.make(recipe.parse(bench.text("ties", EACH)), shard_bytes=SHARDS, seed=1),
    ):
        with pytest.raises(errors.ResumeError, match="is of another recipe, other inputs or other options"):
            run.run(other, bench.out, resume=True)
    os.utime(bench.places[0] / "model.safetensors", ns=(1, 1))
    with pytest.raises(errors.ResumeError, match="other inputs"):
        run.run(made(bench), bench.out, resume=True)
    run.run(made(bench), bench.out)
    assert not left(bench.out)
    assert run.run(made(bench), bench.out, resume=True) == bench.out, "it is finished already"


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "journal"])
def test_a_finished_shard_that_was_damaged_is_written_again(bench: Any, damage: str) -> None:
    work = made(bench)
    stopped(work, bench.out, 20)
    folder = bench.out.with_name(".out.merging")
    first = sorted(folder.glob("*.safetensors"))[0]
    if damage == "flip":
        whole = bytearray(first.read_bytes())
        whole[-1] ^= 1
        first.write_bytes(whole)
    elif damage == "cut":
        os.truncate(first, first.stat().st_size - 1)
    elif damage == "delete":
        first.unlink()
    else:
        journal = folder / run.JOURNAL
        journal.write_bytes(journal.read_bytes()[:-30])
    run.run(work, bench.out, resume=True)
    assert content(bench.out) == content(run.run(work, bench.folder / "undisturbed"))


def test_a_system_that_cannot_exchange_folders_still_replaces_them(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_exchange", lambda a, b: False)
    old = content(run.run(made(bench), bench.out))
    work = made(bench, parameters={"normalize": False})
    new = content(run.run(work, bench.out))
    assert new != old
    assert not left(bench.out)
    # Killed between the two renames: the old output comes back first.
    bench.out.rename(bench.folder / ".out.old")
    with pytest.raises(errors.ResumeError):
        run.run(made(bench), bench.out, resume=True)
    assert content(bench.out) == new


def test_an_old_merge_half_deleted_never_comes_back(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(bench), made(bench, parameters={"normalize": False})
    run.run(first, bench.out)

    def half(folder: Path, ignore_errors: bool = False) -> None:
        if folder.is_dir():
            next(folder.glob("*.safetensors")).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(run.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        run.run(second, bench.out)
    monkeypatch.undo()
    new = content(bench.out)
    with pytest.raises(errors.ResumeError):
        run.run(first, bench.out, resume=True)
    assert content(bench.out) == new
    assert not left(bench.out)


# What it costs.


def test_neither_torch_nor_transformers_is_imported(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(bench.text("hi_merging", EACH))
    heavy = ("torch", "transformers", "safetensors", "scipy", "pandas")
    code = (
        "import sys, atexit; from zfu_lib.cli import main; "
        f"atexit.register(lambda: print([name for name in {heavy} if name in sys.modules])); "
        f"sys.argv[1:] = ['merge', {str(tmp_path / 'recipe.yml')!r}, {str(bench.out)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert bench.out.is_dir()


def test_memory_does_not_grow_with_the_model(tools: Any, tmp_path: Path) -> None:
    def peak(tensors: int, elements: int) -> int:
        folder = tmp_path / f"{tensors}x{elements}"
        generator = np.random.default_rng(0)
        for name in ("base", "a"):
            made = {f"model.layers.{i}.w": generator.standard_normal(elements, np.float32) for i in range(tensors)}
            tools.write_model(folder / name, made, "bfloat16")
        text = tools.recipe_text("ties", folder / "base", {folder / "a": {"weight": 1, "density": 0.5}})
        work = plan.make(recipe.parse(text))
        tracemalloc.start()
        run.run(work, folder / "out")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small = peak(2, 1 << 20)
    assert peak(8, 1 << 20) < 1.1 * small
    assert peak(1, 8 << 20) < 1.1 * small
