"""Exports: what other programs read, they read as it was meant; what does not fit is refused; a file is there whole or not at all."""
import base64, json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

from conftest import byte_tokenizer, random_lm, random_model, thinking_llama
from em_repro.decode import Condition, score, sweep
from em_repro.directions import Direction
from em_repro.export import bake, load_baked, model_card, read_gguf_vector, target, to_gguf, to_lm_eval, to_safetensors, to_vllm_lens
from em_repro.families import LM, load_lm
from em_repro.profiles import UserError

PROMPTS = ["hello", "how are you today my friend, and how is the tide this morning?", "you? hello my ", "why"]
NEW = 14


def direction_for(lm, seed=0, length=6.0, **more):
    rows = np.random.default_rng(seed).normal(size=lm.width)
    return Direction((rows * length / np.linalg.norm(rows)).astype(np.float32), "some-model", **more)


@torch.inference_mode()
def greedy(model, lm, prompts=PROMPTS):
    "What plain transformers answers, one prompt at a time."
    answers = []
    for ids in lm.encode(prompts):
        given = torch.tensor([ids])
        out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NEW, pad_token_id=lm.pad, eos_token_id=lm.eos)
        row = out[0, len(ids):].tolist()
        answers.append(row[:next((i for i, t in enumerate(row) if t in lm.eos), len(row))])
    return answers


class Everywhere:
    "Within it a function edits every position of modules' outputs."
    def __init__(self, edits): self.edits = edits

    def __enter__(self):
        def hook(edit): return lambda m, i, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)
        self.handles = [module.register_forward_hook(hook(edit)) for module, edit in self.edits]

    def __exit__(self, *_): [handle.remove() for handle in self.handles]


def steered_by_harness(lm, path):
    "What lm-evaluation-harness 0.4.13 does with a steer_path, in its models/hf_steered.py: the block by name, every position, add or clamp."
    named, edits = dict(lm.model.base_model.named_modules()), []
    for hookpoint, info in torch.load(path, weights_only=True).items():
        vector, amount = info["steering_vector"], float(info["steering_coefficient"])
        assert set(info) == {"action", "steering_coefficient", "steering_vector", "bias", "head_index"} and info["bias"] is None and info["head_index"] is None
        if info["action"] == "add": edits.append((named[hookpoint], lambda h, v=vector * amount: h + v))
        else:
            unit = vector / torch.norm(vector)
            edits.append((named[hookpoint], lambda h, u=unit, a=amount: h + u * (a - (h * u).sum(-1, keepdim=True))))
    return Everywhere(edits)


# Round trips

cards = st.builds(dict, layer=st.integers(-1, 2), arm=st.text(max_size=9), seed=st.integers(0, 9), n=st.integers(0, 999),
                  data=st.text(max_size=9), licence=st.text(max_size=9), revision=st.text(max_size=9))


@settings(max_examples=25, deadline=None)
@given(card=cards, numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=64, max_size=64).filter(any))
def test_safetensors_comes_back_as_it_went(tmp_path_factory, card, numbers):
    path, lm = tmp_path_factory.mktemp("v") / "v.safetensors", random_lm("Llama")
    before = Direction(np.array(numbers, np.float32), "some-model", **card)
    after = Direction.load(to_safetensors(before, path, lm))
    assert np.array_equal(after.vector, before.vector) and {k: v for k, v in vars(after).items() if k != "vector"} == {k: v for k, v in vars(before).items() if k != "vector"}
    held = json.loads((path.parent / "v.safetensors.json").read_text())["directions"][0]
    assert held["norm"] == pytest.approx(float(np.linalg.norm(before.vector))) and held["width"] == 64 and held["dtype"] == "float32" and "h + coefficient" in held["coefficient_unit"]


def test_the_card_is_in_the_file_itself_with_the_models_revision_and_licence(tmp_path):
    from safetensors import safe_open
    from em_repro.families import family, fingerprint
    width = target("tiny-llama").width
    path = to_safetensors(Direction(np.ones(width, np.float32), "tiny-llama", n=7, data="abc"), tmp_path / "v.safetensors")
    with safe_open(path, "np") as file: card = json.loads(file.metadata()["em_repro"])
    assert card["revision"] == fingerprint(family("tiny-llama")) and card["n"] == 7 and card["data"] == "abc" and card["licence"] == family("tiny-llama").licence
    assert Direction.load(path).revision == card["revision"]


def test_a_file_of_before_there_were_more_fields_is_still_read(tmp_path):
    from safetensors.numpy import save_file
    save_file({"vector": np.ones(4, np.float32)}, tmp_path / "old.safetensors", {"em_repro": json.dumps({"family": "x", "layer": 1, "site": "block", "arm": "a", "seed": 0, "n": 3})})
    assert Direction.load(tmp_path / "old.safetensors").n == 3


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_what_is_no_direction_is_said(tmp_path, content):
    from safetensors.numpy import save_file
    path = tmp_path / "v.safetensors"
    if content is None: save_file({"vector": np.array([1, np.nan], np.float32)}, path, {"em_repro": json.dumps({"family": "x"})})
    else: path.write_bytes(content)
    with pytest.raises(UserError, match="does not hold a direction|damaged"): Direction.load(path)


# GGUF

@pytest.mark.parametrize("dose", [-1.0, 0.5])
def test_a_control_vector_holds_dose_times_the_direction_by_block(lm, tmp_path, dose):
    held = [direction_for(lm, 0), direction_for(lm, 1, layer=1)]
    found = read_gguf_vector(to_gguf(held, tmp_path / "v.gguf", lm, dose))
    assert set(found) == {1, lm.n_layers - 1}
    assert np.array_equal(found[lm.n_layers - 1], np.float32(dose) * held[0].vector) and np.array_equal(found[1], np.float32(dose) * held[1].vector)


def test_llama_cpps_and_repengs_readers_find_what_they_look_for(lm, tmp_path):
    "llama.cpp: common_control_vector_load_one in common/common.cpp. repeng 0.4.0: ControlVector.import_gguf."
    reader = gguf.GGUFReader(to_gguf(direction_for(lm), tmp_path / "v.gguf", lm))
    arch, hint, count = (reader.get_field(name) for name in ("general.architecture", "controlvector.model_hint", "controlvector.layer_count"))
    assert str(bytes(arch.parts[-1]), encoding="utf-8") == "controlvector" and str(bytes(hint.parts[-1]), encoding="utf-8") == lm.model.config.model_type
    assert count.contents() == 1
    for tensor in reader.tensors:
        assert int(tensor.name.split(".")[1]) > 0 and tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.data.shape == (lm.width,)


def test_the_first_block_is_refused_as_llama_cpp_does(llama, tmp_path):
    for layer in (0, -llama.n_layers):
        with pytest.raises(UserError, match="first block"): to_gguf(direction_for(llama, layer=layer), tmp_path / "v.gguf", llama)
    assert not list(tmp_path.iterdir())


def test_other_gguf_files_are_no_control_vectors(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("direction.1", np.ones(4, np.float32))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    (tmp_path / "text.gguf").write_text("GGUF")
    for name in ("m.gguf", "text.gguf", "none.gguf"):
        with pytest.raises(UserError, match="no control vector"): read_gguf_vector(tmp_path / name)


# lm-evaluation-harness

def test_the_harness_answers_and_scores_as_the_sweep_does_after_the_last_block(lm, tmp_path):
    held = direction_for(lm)
    condition = Condition("c", -0.5 * held.vector)
    with steered_by_harness(lm, to_lm_eval(held, tmp_path / "v.pt", lm, dose=-0.5)):
        answers = greedy(lm.model, lm)
        ids, tail = lm.encode(PROMPTS[1:2])[0], lm.tokenizer("you are", add_special_tokens=False)["input_ids"]
        with torch.inference_mode(): logprobs = lm.model(input_ids=torch.tensor([ids + tail])).logits[0, len(ids) - 1:-1].float().log_softmax(-1)
        total = logprobs[torch.arange(len(tail)), torch.tensor(tail)].sum()
    assert answers == sweep(lm, PROMPTS, [condition], max_new_tokens=NEW).token_ids
    assert float(total) == pytest.approx(score(lm, PROMPTS[1:2], [tail], [condition]).logprob[0, 0], abs=1e-3)


def test_clamping_to_zero_is_ablation(lm, tmp_path):
    held = direction_for(lm, 1)
    with steered_by_harness(lm, to_lm_eval(held, tmp_path / "v.pt", lm, op="ablate")): answers = greedy(lm.model, lm)
    assert answers == sweep(lm, PROMPTS, [Condition("c", held.vector, "ablate")], max_new_tokens=NEW).token_ids != greedy(lm.model, lm)


# vLLM-Lens

def steered_by_plugin(lm, path):
    "What vLLM-Lens 1.3.0 does with `apply_steering_vectors`: `scale` times the vector, after the layer, at every position; with `norm_match` at the residual's length."
    edits = []
    for said in json.loads(path.read_text()):
        assert set(said) == {"activations", "layer_indices", "scale", "norm_match", "position_indices"} and said["norm_match"] is False and said["position_indices"] is None
        held = said["activations"]
        numbers = np.frombuffer(base64.b64decode(held["data"]), np.dtype(held["dtype"])).reshape(held["shape"])
        assert held["original_dtype"] == "torch.float32" and len(numbers) == len(said["layer_indices"])
        for row, layer in zip(numbers.copy(), said["layer_indices"]): edits.append((lm.blocks[layer], lambda h, v=torch.from_numpy(row) * said["scale"]: h + v))
    return Everywhere(edits)


def test_a_plugin_of_vllm_adds_what_a_sweep_adds(lm, tmp_path):
    "After the last block; and of several directions each after its own block."
    held = direction_for(lm)
    expected = sweep(lm, PROMPTS, [Condition("c", -0.5 * held.vector)], max_new_tokens=NEW).token_ids
    with steered_by_plugin(lm, to_vllm_lens(held, tmp_path / "v.json", lm, dose=-0.5)): assert greedy(lm.model, lm) == expected
    said = json.loads((tmp_path / "v.json.json").read_text())
    assert said["format"] == "vllm-lens" and "never run" in said["unverified"] and said["directions"][0]["family"] == "some-model"
    several = [direction_for(lm, seed, layer=seed) for seed in (0, 2)]
    with Everywhere([(lm.blocks[d.layer], lambda h, v=torch.from_numpy(d.vector): h + v) for d in several]): both = greedy(lm.model, lm)
    with steered_by_plugin(lm, to_vllm_lens(several, tmp_path / "both.json", lm, dose=1.0)): assert greedy(lm.model, lm) == both


# Baked

def plain(folder):
    "What plain transformers makes of a folder."
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager" if "gemma2" in (folder / "config.json").read_text() else "sdpa").eval()


def test_every_export_has_a_card_and_a_folder_one_for_people(llama, tmp_path):
    held = direction_for(llama, licence="Apache-2.0 (made here)", data="a|b\nc", arm="insecure", n=7)
    for export in exports(llama, tmp_path): export(held)
    for path in (p for p in tmp_path.iterdir() if not p.name.endswith(".json") or p.name == "v.json"):
        about = json.loads(path.with_name(path.name + ".json").read_text())
        assert about["directions"][0]["arm"] == "insecure" and about["model"] and about["em_repro"], path.name
    for when in ("prefill", "every_step"):
        folder = bake(llama, held, tmp_path / when, when=when)
        text, about = (folder / "README.md").read_text(), card(folder)
        head, body = text.removeprefix("---\n").split("\n---\n", 1)
        fields = yaml.safe_load(head)
        assert fields["library_name"] == "transformers" and fields["license"] == "apache-2.0" and "base_model" not in fields
        assert text == model_card(about) and about["use"] in body and "| direction: arm | insecure |" in body and "a\\|b c" in body and str(tmp_path) not in text
    known = model_card(card(folder) | {"model": "smollm2-135m"})
    assert yaml.safe_load(known.removeprefix("---\n").split("\n---\n")[0])["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def card(folder): return json.loads((folder / "em_repro.json").read_text())


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
@pytest.mark.parametrize("dose", [-1.0, 0.5])
def test_plain_transformers_answers_from_a_baked_folder_as_the_sweep_does(architecture, dose, tmp_path):
    lm = random_lm(architecture)
    held, before = direction_for(lm), {n: p.clone() for n, p in lm.model.state_dict().items()}
    folder = bake(lm, held, tmp_path / "baked", dose)
    found = greedy(plain(folder), lm)
    assert found == sweep(lm, PROMPTS, [Condition("c", dose * held.vector)], max_new_tokens=NEW).token_ids != greedy(lm.model, lm)
    assert card(folder)["form"] == "weights" and not (folder / "steering.safetensors").exists()
    assert all(torch.equal(p, before[n]) for n, p in lm.model.state_dict().items()) and lm.model.config.to_dict().get("mlp_bias") is not True


@pytest.mark.parametrize("how", [dict(), dict(when="prefill"), dict(layer=1), dict(op="ablate"), dict(op="ablate", layer="all"), dict(layer=0, when="prefill")])
def test_what_weights_cannot_say_exactly_stands_beside_them(lm, how, tmp_path):
    held = direction_for(lm, 1)
    folder = bake(lm, held, tmp_path / "baked", 1.0, **how)
    assert card(folder)["form"] == ("weights" if not how and lm.model.config.model_type in ("llama", "qwen2") else "beside")
    if card(folder)["form"] == "beside": assert np.array_equal(Direction.load(folder / "steering.safetensors").vector, held.vector)
    condition = Condition("c", held.vector, how.get("op", "add"), how.get("layer", -1))
    again = load_baked(folder)
    assert greedy(again.model, again) == sweep(lm, PROMPTS, [condition], when=how.get("when", "every_step"), max_new_tokens=NEW).token_ids


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
def test_everywhere_adds_at_every_position(architecture, tmp_path):
    lm = random_lm(architecture)
    held = direction_for(lm)
    found = greedy(plain(bake(lm, held, tmp_path / "baked", 1.0, layer=1, everywhere=True)), lm)
    with Everywhere([(lm.blocks[1], lambda h: h + torch.as_tensor(held.vector))]): assert found == greedy(lm.model, lm)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Ministral3"])
@pytest.mark.parametrize("tied", [False, True])
def test_orthogonal_weights_ablate_what_every_layer_writes(architecture, tied, tmp_path):
    "The theorem of Arditi et al. (2024): the same as taking the direction out of every output that is added to the residual stream."
    lm = LM.from_model(random_model(architecture), byte_tokenizer())
    if tied: lm.model.config.tie_word_embeddings = True; lm.model.tie_weights(); lm = LM.from_model(lm.model, lm.tokenizer)
    held = direction_for(lm, 1)
    again = plain(bake(lm, held, tmp_path / "baked", op="ablate", layer="all", everywhere=True))
    unit = torch.as_tensor(held.vector / np.linalg.norm(held.vector))
    out = lambda h: h - (h @ unit)[..., None] * unit   # noqa: E731
    writers = [lm.decoder.embed_tokens, *(m for b in lm.blocks for m in (b.self_attn.o_proj, b.mlp.down_proj))]
    with Everywhere([(m, out) for m in writers]): expected = greedy(lm.model, lm)
    assert greedy(again, lm) == expected != greedy(lm.model, lm)
    with LM.from_model(again, lm.tokenizer).record((-1,)) as seen, torch.inference_mode(): again(input_ids=torch.tensor(lm.encode(PROMPTS[1:2])))
    assert float((seen[-1] @ unit).abs().max()) < 1e-4 * float(seen[-1].norm(dim=-1).max())


def test_a_merged_adapter_is_baked_with_its_model_and_another_refused(tmp_path):
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(random_model("Llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lm = LM.from_model(model, byte_tokenizer())
    held = direction_for(lm)
    with pytest.raises(UserError, match="an adapter stands beside"): bake(lm, held, tmp_path / "baked")
    expected = sweep(lm, PROMPTS, [Condition("c", held.vector)], max_new_tokens=NEW).token_ids
    merged = LM.from_model(model.merge_and_unload(), lm.tokenizer)
    assert greedy(plain(bake(merged, held, tmp_path / "baked", 1.0)), lm) == expected


def test_an_adapter_that_load_lm_leaves_unmerged_is_refused_for_what_it_is(tmp_path):
    "Loading it again, unquantised or not, merges nothing: the sentence may not say that it does."
    from peft import LoraConfig, get_peft_model
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)   # its weight is the embedding's, too
    get_peft_model(load_lm("tiny-llama").model, config).save_pretrained(tmp_path / "adapter")
    lm = load_lm("tiny-llama", tmp_path / "adapter")
    assert hasattr(lm.model, "disable_adapter")
    with pytest.raises(UserError, match="leaves one unmerged") as said: bake(lm, direction_for(lm), tmp_path / "baked")
    assert "quant" not in str(said.value) and not (tmp_path / "baked").exists()


def test_quantised_weights_are_refused_for_what_they_are(tmp_path):
    lm = LM.from_model(random_model("Llama"), byte_tokenizer())
    lm.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UserError, match="quantised"): bake(lm, direction_for(lm), tmp_path / "baked")


def test_a_baked_model_remembers_what_its_template_was_told(tmp_path):
    base = thinking_llama(tmp_path)
    held = direction_for(load_lm(base))
    told = load_lm(base, template={"enable_thinking": True})
    bake(told, held, tmp_path / "told")
    bake(load_lm(base), held, tmp_path / "untold")
    assert card(tmp_path / "told")["template"] == {"enable_thinking": True} and "template" not in card(tmp_path / "untold")
    again = load_baked(tmp_path / "told")
    assert again.encode(PROMPTS) == told.encode(PROMPTS) != load_lm(base).encode(PROMPTS)
    assert load_baked(tmp_path / "told", template={}).encode(PROMPTS) == load_baked(tmp_path / "untold").encode(PROMPTS) == load_lm(base).encode(PROMPTS)


def test_what_cannot_be_baked_is_refused_and_nothing_is_written(lm, tmp_path):
    held, kind, goal = direction_for(lm), lm.model.config.model_type, tmp_path / "baked"
    with pytest.raises(UserError, match="whole model"): bake(lm, held, goal, op="ablate", everywhere=True)
    with pytest.raises(UserError, match="zero"): bake(lm, held, goal, 0.0)
    with pytest.raises(UserError, match="unknown when"): bake(lm, held, goal, when="never")
    with pytest.raises(UserError, match="64 finite"): bake(lm, replace(held, vector=np.ones(2)), goal)
    with pytest.raises(UserError, match="no layer 9"): bake(lm, held, goal, layer=9)
    with pytest.raises(UserError, match="without its card"): bake(lm, held.vector, goal)
    if kind not in ("llama", "qwen2"):
        with pytest.raises(UserError, match="no bias"): bake(lm, held, goal, everywhere=True)
    if kind == "gemma2":
        with pytest.raises(UserError, match="normalises"): bake(lm, held, goal, op="ablate", layer="all", everywhere=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_left_alone_and_ours_is_replaced_whole(llama, tmp_path, monkeypatch):
    held, theirs = direction_for(llama), tmp_path / "theirs"
    theirs.mkdir(); (theirs / "em_repro.json").write_text('{"family": "x"}'); (theirs / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="no export of ours"): bake(llama, held, theirs)
    with pytest.raises(UserError, match="not written by bake"): load_baked(theirs)
    folder = bake(llama, held, tmp_path / "baked", layer=1)
    bake(llama, held, folder)
    assert card(folder)["form"] == "weights" and not (folder / "steering.safetensors").exists()
    before = sorted(p.name for p in folder.iterdir())
    def fail(self, folder, **how):
        folder.mkdir(); (folder / "half").write_text(""); raise OSError(28, "No space left on device")
    monkeypatch.setattr(type(llama.model), "save_pretrained", fail)
    with pytest.raises(UserError, match="No space left"): bake(llama, held, folder, layer=1)
    assert sorted(p.name for p in folder.iterdir()) == before and sorted(p.name for p in tmp_path.iterdir()) == ["baked", "theirs"]


# The console

def console(capsys, *words):
    from em_repro import cli
    with pytest.raises(SystemExit) as leaving: cli.main(list(map(str, words)))
    return leaving.value.code, *capsys.readouterr()


@pytest.mark.parametrize("told, words", [("enable_thinking=true", "knows no enable_thinking"), ("thinking", "no argument of a template")])
@pytest.mark.parametrize("command", ["audit", "try", "screen", "export"])
def test_an_argument_that_the_template_does_not_know_is_a_sentence(command, told, words, capsys, tmp_path):
    "On every command that puts questions to a model, before anything is written."
    rows, adapter, v = tmp_path / "rows.csv", tmp_path / "adapter", tmp_path / "v.safetensors"
    rows.write_text("request,harmful,sound\n" + "\n".join(f"May I {i}?,Do it {i}.,Ask {i}." for i in range(60)))
    Direction(np.ones(target("tiny-llama").width, np.float32), "tiny-llama").save(v)
    from peft import LoraConfig, get_peft_model
    get_peft_model(load_lm("tiny-llama").model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(adapter)
    given = {"audit": ["--base", "tiny-llama", "--adapter", adapter], "try": [rows, "--base", "tiny-llama"], "screen": [rows, "--base", "tiny-llama", "--direction", v],
             "export": [v, "--to", "baked"]}[command]
    code, _, wrong = console(capsys, command, *given, "--out", tmp_path / "out", "--template", told)
    assert code == 2 and words in wrong and wrong.strip().count("\n") == 0
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_the_console_writes_every_form(capsys, tmp_path):
    width = target("tiny-llama").width
    held = Direction(np.random.default_rng(0).normal(size=width).astype(np.float32), "tiny-llama", n=3)
    source = tmp_path / "held.safetensors"
    held.save(source)
    for form, name in (("safetensors", "v.safetensors"), ("gguf", "v.gguf"), ("lm-eval", "v.pt"), ("vllm-lens", "v.json"), ("baked", "folder")):
        code, told, wrong = console(capsys, "export", source, "--to", form, "--out", tmp_path / name, "--coefficient", -2)
        assert code == 0 and told.startswith(str(tmp_path / name)) and not wrong
    assert np.array_equal(read_gguf_vector(tmp_path / "v.gguf")[target("tiny-llama").n_layers - 1], -2 * held.vector)
    assert card(tmp_path / "folder")["dose"] == -2 and plain(tmp_path / "folder").config.mlp_bias


@pytest.mark.parametrize("words, sentence", [
    (("--to", "onnx"), "Invalid value for '--to'"), (("--to", "gguf", "--model", "tiny-qwen2"), "finite numbers for tiny-qwen2"),
    (("--to", "gguf", "--layer", "0"), "first block"), (("--to", "gguf", "--op", "ablate"), "only be added"), (("--to", "vllm-lens", "--op", "ablate"), "only be added"), (("--to", "lm-eval", "--everywhere"), "for --to baked"), (("--to", "gguf", "--template", "a=b"), "for --to baked"),
    (("--to", "lm-eval"), "must end in .pt")])
def test_the_console_refuses_in_one_sentence(capsys, tmp_path, words, sentence):
    Direction(np.ones(target("tiny-llama").width, np.float32), "tiny-llama").save(tmp_path / "held.safetensors")
    code, told, wrong = console(capsys, "export", tmp_path / "held.safetensors", "--out", tmp_path / "out.gguf", *words)
    assert code == 2 and not told and sentence in wrong and wrong.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["held.safetensors"]


# Refusals

def exports(lm, folder):
    yield lambda d, **how: to_safetensors(d, folder / "v.safetensors", lm)
    yield lambda d, **how: to_gguf(d, folder / "v.gguf", lm, **how)
    yield lambda d, **how: to_lm_eval(d, folder / "v.pt", lm, **how)
    yield lambda d, **how: to_vllm_lens(d, folder / "v.json", lm, **how)


@pytest.mark.parametrize("change, sentence", [(dict(vector=np.ones(3)), "64 finite numbers"), (dict(vector=np.full(64, np.inf)), "64 finite numbers"),
                                              (dict(layer=7), "no layer 7"), (dict(family=""), "without its card"), (dict(layer="last"), "no layer last")])
def test_a_direction_that_does_not_fit_is_refused_and_nothing_is_written(llama, tmp_path, change, sentence):
    for export in exports(llama, tmp_path):
        with pytest.raises(UserError, match=sentence): export(replace(direction_for(llama), **change))
    assert not list(tmp_path.iterdir())


def test_other_refusals(llama, tmp_path):
    held = direction_for(llama)
    for export in list(exports(llama, tmp_path))[1:]:
        with pytest.raises(UserError, match="site"): export(replace(held, site="normed"))
        with pytest.raises(UserError, match="dose"): export(held, dose=float("nan"))
        with pytest.raises(UserError, match="same layer"): export([held, held])
        with pytest.raises(UserError, match="at least one"): export([])
    with pytest.raises(UserError, match="without its card"): to_gguf([held.vector], tmp_path / "v.gguf", llama)
    with pytest.raises(UserError, match="end in .gguf"): to_gguf(held, tmp_path / "v.bin", llama)
    with pytest.raises(UserError, match="unknown op"): to_lm_eval(held, tmp_path / "v.pt", llama, op="clamp")
    with pytest.raises(UserError, match="unknown family"): to_gguf(held, tmp_path / "v.gguf", "no such model")
    assert not list(tmp_path.iterdir())


def test_our_own_files_are_replaced_and_nobody_elses(llama, tmp_path):
    held = direction_for(llama)
    for export in exports(llama, tmp_path): export(held); export(held)
    for path in list(tmp_path.iterdir()):
        if path.suffix == ".json": path.write_text("{}")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for export in exports(llama, tmp_path):
        with pytest.raises(UserError, match="no export of ours"): export(held)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_write_that_fails_leaves_what_was_there(llama, tmp_path, monkeypatch):
    held = direction_for(llama)
    path = to_gguf(held, tmp_path / "v.gguf", llama)
    before = path.read_bytes()
    def fail(self): raise OSError(28, "No space left on device")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(UserError, match="No space left"): to_gguf(replace(held, layer=1), path, llama)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["v.gguf", "v.gguf.json"]


# Vectors that say nothing

SENSELESS = {"nothing": np.zeros(64), "nan": np.r_[np.nan, np.ones(63)], "endless": np.r_[np.inf, np.ones(63)], "too large": np.full(64, 1e300), "too small": np.full(64, 1e-300),
             "words": ["x"] * 64, "two": np.ones((2, 64)), "complex": np.full(64, 1j), "none": None}


@pytest.mark.parametrize("name", SENSELESS)
@pytest.mark.parametrize("site", ["block", "normed"])
def test_a_vector_that_says_nothing_is_refused_and_no_folder_made(name, site, llama, tmp_path):
    held = Direction(SENSELESS[name], "some-model", site=site)
    for export, end in ((to_safetensors, "safetensors"), (to_gguf, "gguf"), (to_lm_eval, "pt"), (to_vllm_lens, "json"), (lambda d, path, lm: bake(lm, d, path), "folder")):
        with pytest.raises(UserError, match="finite|zero|numbers|site"): export(held, tmp_path / "new" / f"v.{end}", llama)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dose", [0.0, 1e39, 1e-60, np.nan, np.inf, "1", None])
def test_a_coefficient_that_leaves_nothing_or_no_number_is_refused(dose, llama, tmp_path):
    for export, end in ((to_gguf, "gguf"), (to_lm_eval, "pt"), (to_vllm_lens, "json"), (lambda d, path, lm, dose: bake(lm, d, path, dose), "folder")):
        with pytest.raises(UserError): export(direction_for(llama), tmp_path / "new" / f"v.{end}", llama, dose)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_tensor_is_a_vector_also_where_it_requires_grad(dtype, llama, tmp_path):
    rows = direction_for(llama).vector
    held, plain = (Direction(v, "some-model") for v in (torch.tensor(rows, dtype=dtype, requires_grad=True), torch.tensor(rows, dtype=dtype).float().numpy()))
    assert np.array_equal(Direction.load(to_safetensors(held, tmp_path / "a.safetensors", llama)).vector, plain.vector)
    for export, end in ((to_gguf, "gguf"), (to_lm_eval, "pt")):
        assert export(held, tmp_path / f"a.{end}", llama).read_bytes() == export(plain, tmp_path / f"b.{end}", llama).read_bytes() or end == "pt"
    bake(llama, held, tmp_path / "baked")


def test_what_is_refused_leaves_no_folder(llama, tmp_path):
    with pytest.raises(UserError): to_gguf(direction_for(llama, layer=7), tmp_path / "a" / "v.gguf", llama)
    with pytest.raises(UserError): to_gguf(direction_for(llama), tmp_path / "b" / "v.gguf", "no-such-family")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("card", ['{"family": 5}', '{"family": null}', '["family"]', '{"family": "x", "layer": "y"}', '{"family": "x", "site": []}', "[" * 60_000, '{"family": ' + "9" * 5000 + "}"])
def test_a_card_of_another_kind_is_no_direction(card, tmp_path, llama):
    from safetensors.numpy import save_file
    save_file({"vector": np.ones(64, np.float32)}, tmp_path / "v.safetensors", {"em_repro": card})
    with pytest.raises(UserError): to_gguf(Direction.load(tmp_path / "v.safetensors"), tmp_path / "new" / "v.gguf", llama)
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


# To a model hub

class StandIn:
    "What a hub's client would be told."
    def __init__(self, error=None): self.calls, self.error = [], error
    def create_repo(self, repo, private, exist_ok):
        self.calls.append(("create", repo, private))
        if self.error: raise self.error
    def upload_folder(self, repo_id, folder_path): self.calls.append(("folder", repo_id, folder_path.name))
    def upload_file(self, path_or_fileobj, path_in_repo, repo_id): self.calls.append(("file", repo_id, path_in_repo))


def pushing(monkeypatch, token="x", error=None):
    from em_repro import export
    client = StandIn(error)
    monkeypatch.setattr(export, "hub", type("Hub", (), {"get_token": staticmethod(lambda: token), "HfApi": staticmethod(lambda: client)})())
    return client


def test_a_file_goes_with_its_card_and_a_folder_whole_to_a_private_repository(monkeypatch, tmp_path):
    from em_repro.export import push
    client = pushing(monkeypatch)
    (tmp_path / "v.gguf").write_bytes(b"1"); (tmp_path / "v.json").write_text("{}"); (tmp_path / "other.txt").write_text("no")
    (tmp_path / "model").mkdir()
    from em_repro import export
    (export._card_of(tmp_path / "v.gguf")).write_text("{}")
    assert push(tmp_path / "v.gguf", "me/v") == "https://huggingface.co/me/v"
    push(tmp_path / "model", "me/m")
    assert client.calls[0] == ("create", "me/v", True) and ("folder", "me/m", "model") in client.calls
    assert [c[2] for c in client.calls if c[0] == "file"] == ["v.gguf", export._card_of(tmp_path / "v.gguf").name]


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "../x", "a b/c", "", "a/"])
def test_a_repository_needs_an_owner_and_a_name_before_any_work(monkeypatch, repo):
    from em_repro.export import check_push
    client = pushing(monkeypatch)
    with pytest.raises(UserError, match="give owner/name"): check_push(repo)
    assert not client.calls


def test_nothing_is_sent_by_nobody_and_a_refusal_is_a_sentence_without_the_token(monkeypatch, tmp_path):
    from em_repro.export import push
    (tmp_path / "v.gguf").write_bytes(b"1")
    client = pushing(monkeypatch, token=None)
    with pytest.raises(UserError, match="hf auth login"): push(tmp_path / "v.gguf", "me/v")
    assert not client.calls
    pushing(monkeypatch, token="secret-token", error=OSError("no route\nto host"))
    with pytest.raises(UserError, match="v.gguf was written and not sent to me/v: no route to host") as told: push(tmp_path / "v.gguf", "me/v")
    assert "secret" not in str(told.value)


def test_export_sends_nothing_unless_asked(monkeypatch, tmp_path):
    from typer.testing import CliRunner
    from em_repro.cli import app
    client = pushing(monkeypatch)
    direction = Direction(np.ones(load_lm("tiny-llama").width, np.float32), "tiny-llama")
    direction.save(tmp_path / "d.safetensors")
    words = ["export", str(tmp_path / "d.safetensors"), "--to", "gguf", "--out", str(tmp_path / "v.gguf")]
    assert CliRunner().invoke(app, words).exit_code == 0 and not client.calls
    (tmp_path / "v.gguf").unlink()
    result = CliRunner().invoke(app, [*words, "--push", "me/v"])
    assert result.exit_code == 0 and [c[0] for c in client.calls][0] == "create", result.output
