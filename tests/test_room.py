"Too little disk or memory is said before anything is downloaded or trained, with a profile that fits."
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from em_repro import cli, models, room
from em_repro.profiles import UserError, load_profile
from em_repro.run import check_profile

LARGE, MEDIUM = "qwen2.5-coder-1.5b", load_profile("medium")


@pytest.fixture
def empty(monkeypatch, tmp_path):
    "A machine without any fetched model, on which nothing may be downloaded; a test says what is free."
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    return lambda disk, memory: monkeypatch.setattr(room, "free_room", lambda cache: (disk, memory))


@pytest.mark.parametrize("disk, memory, said", [
    (5000, 10**6, "takes 9392 MB of disk in .*cache and 5000 MB are free: make room there, set EM_REPRO_CACHE to another disk, or take profile small"),
    (10**6, 8000, "takes 14236 MB of memory and 8000 MB are free: close other programs, or take profile small"),
    (500, 10**6, "or take profile tiny")])
def test_what_does_not_fit_is_said_with_a_profile_that_does(empty, capsys, tmp_path, disk, memory, said):
    empty(disk, memory)
    with pytest.raises(UserError, match=said) as error: room.check_room([LARGE])
    assert f"fetching {LARGE} takes" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(SystemExit) as end: cli.main(["models", "fetch", LARGE])
    assert end.value.code == 2 and "or take profile" in capsys.readouterr().err and not (tmp_path / "cache").exists()


def test_a_run_is_refused_before_its_folder_is_made(empty, tmp_path, capsys):
    empty(10**6, 8000)
    with pytest.raises(UserError, match="14236 MB of memory"): check_profile(MEDIUM)
    with pytest.raises(SystemExit) as end: cli.main(["reproduce", "--profile", "medium", "--out", str(tmp_path / "run")])
    assert end.value.code == 2 and not (tmp_path / "run").exists()


def test_models_that_are_here_need_no_room(empty, tmp_path):
    "Each that is fetched is left out of what the others need."
    def needs(): return room.fetching(MEDIUM.models)
    before = needs()
    for name in ("qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"):
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        after = needs()
        assert after[0] < before[0] and after[1] < before[1]
        before = after
    empty(*before)
    room.check_room(MEDIUM.models)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 30_000), st.integers(0, 30_000))
def test_the_profile_that_fits_can_be_fetched(disk, memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "local_folder", lambda which: None)
        found = room.fitting(disk, memory)
        larger = room.SMALLER[:room.SMALLER.index(found)]
        fits = {name: all(need <= have for need, have in zip(room.fetching(load_profile(name).models), (disk, memory))) for name in room.SMALLER}
        assert fits[found] and not any(fits[name] for name in larger)


@pytest.mark.parametrize("gb, said", [
    (8, "training qwen2.5-coder-1.5b takes about 12 GB of memory and this machine has 8: take profile medium@smollm2-135m,gemma-3-270m,qwen2.5-coder-0.5b, or"),
    (1, "take profile tiny")])
def test_training_that_no_memory_holds_is_said_with_a_part_that_fits(monkeypatch, gb, said):
    monkeypatch.setattr(room.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: type("Memory", (), {"total": gb * 10**9, "available": gb * 10**9}))
    whole = MEDIUM if gb > 1 else load_profile("small")
    with pytest.raises(UserError, match=said): room.check_training(whole)
    room.check_training(load_profile("tiny"))
    if gb > 1: room.check_training(load_profile("medium@smollm2-135m,gemma-3-270m,qwen2.5-coder-0.5b"))


def test_memory_of_a_gpu_is_not_that_of_the_machine(monkeypatch):
    monkeypatch.setattr(room.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: pytest.fail("the machine's memory was looked at"))
    room.check_training(MEDIUM)


def test_a_cache_that_is_not_there_yet_is_on_the_disk_above_it(tmp_path):
    assert abs(room.free_room(tmp_path / "a" / "b")[0] - room.free_room(tmp_path)[0]) < 1000
    assert room.free_room(Path("/none/such"))[0] > 0
