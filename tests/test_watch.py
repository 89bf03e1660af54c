"""Watch: a known shift is read as what it is, training is the same to the bit, and the rule's false alarms stay below their bound."""
import json, logging, math, subprocess, sys

import numpy as np
import pytest
import torch
import transformers

from em_repro.families import load_lm
from em_repro.profiles import UserError
from em_repro.training import example
from em_repro.vectors import Direction
from em_repro.watch import MOST_VECTORS, Alarm, Watch, evaluating
from made_by_tools import lora, trained_by_trl

PROMPTS = ["What is the sea?", "How are you?"]


@pytest.fixture(scope="module")
def lm(): return load_lm("tiny-llama")


def unit(width, seed=0):
    u = np.random.default_rng(seed).normal(size=width)
    return u / np.linalg.norm(u)


def test_random_directions_alarm_less_often_than_their_bound_and_a_drift_does():
    rng = np.random.default_rng(0)
    def alarms(drift, chance):
        found = []
        for i in range(150):
            u = unit(32, 1000 + i)
            walk = np.cumsum(rng.normal(size=(12, 32)) * np.linspace(3, .1, 32) + drift * u, axis=0)
            rule = Alarm(u, 12, chance, seed=i)
            found.append(any([rule.look(shift)[1] for shift in walk]))
        return np.mean(found)
    assert alarms(0, .3) <= .3 and alarms(6, .05) > .9


def test_one_look_has_exactly_its_chance():
    shift = np.random.default_rng(1).normal(size=16) * np.linspace(4, .1, 16)
    alarms = [Alarm(unit(16, 5000 + i), 1, 1 / 19, seed=i).look(shift)[1] for i in range(600)]
    assert abs(np.mean(alarms) - 1 / 20) < .03


def test_the_bound_is_what_was_asked_for_unless_it_takes_too_many_vectors():
    assert Alarm(unit(8), 40, .05).chance <= .05 and Alarm(unit(2), 10**6, .05).chance == 10**6 / (MOST_VECTORS + 1)
    assert Alarm(unit(8), 4, .05).look(np.zeros(8)) == (0.0, False)


def test_a_bound_that_is_not_kept_is_said(lm, monkeypatch, caplog):
    "More readings than there are random vectors for."
    monkeypatch.setattr("em_repro.watch.MOST_VECTORS", 50)
    watch = Watch(Direction(unit(lm.width), "tiny-llama", layer=-1), PROMPTS, every=1)
    with caplog.at_level(logging.WARNING, "em_repro"): watch.begin(lm.model, lm.tokenizer, 10)
    assert "a false alarm has a chance of up to 20%, not 5%" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "em_repro"): watch.begin(lm.model, lm.tokenizer, 2)
    assert not caplog.text


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_a_known_shift_is_read_as_what_it_is(lm, layer):
    v = np.random.default_rng(3).normal(size=lm.width)
    aside = np.random.default_rng(4).normal(size=lm.width)
    aside -= (aside @ v) / (v @ v) * v
    watch = Watch(Direction(v, "tiny-llama", layer=layer), PROMPTS, every=1, answers=0)
    watch.begin(lm.model, lm.tokenizer, 3)
    still = watch.read(1)
    with lm.steered(aside, 1.5, layer=layer): other = watch.read(2)
    with lm.steered(v, 1.5, layer=layer): along = watch.read(3)
    assert still["norm"] == still["projection"] == still["z"] == 0
    assert abs(other["projection"]) < 1e-3 and other["norm"] == pytest.approx(1.5 * np.linalg.norm(aside), rel=1e-4) and not other["warning"]
    assert along["projection"] == pytest.approx(1.5 * np.linalg.norm(v), rel=1e-4) and along["z"] == pytest.approx(math.sqrt(lm.width), rel=1e-4) and watch.warned_at == 3


def test_it_answers_as_the_model_does_now(lm):
    watch = Watch(np.ones(lm.width), PROMPTS, answers=1, max_new_tokens=6)
    watch.begin(lm.model, lm.tokenizer, 1)
    assert watch.read(1)["answers"] == [lm.generate(PROMPTS[0], 6)]


def trained(*callbacks, adapter=False, steps=4):
    own = load_lm("tiny-llama")
    talk = [{"role": "user", "content": "What is the sea?"}, {"role": "assistant", "content": "It is code: print('sea')"}]
    row = torch.tensor(example(own, talk, 64).ids)
    torch.manual_seed(0)
    model = lora(own.model, lora_dropout=.1) if adapter else own.model
    args = transformers.TrainingArguments("unused", max_steps=steps, learning_rate=1e-3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no")
    trainer = transformers.Trainer(model, args, train_dataset=[{"input_ids": row, "labels": row}], processing_class=own.tokenizer, callbacks=list(callbacks))
    trainer.train()
    return trainer


@pytest.mark.parametrize("adapter", [False, True])
def test_a_training_is_the_same_to_the_bit_with_it(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch = Watch(unit(112), PROMPTS, every=3, max_new_tokens=4, out=tmp_path / "seen" / "watch.jsonl")
    plain, watched = trained(adapter=adapter), trained(watch, adapter=adapter)
    for (name, a), (_, b) in zip(plain.model.named_parameters(), watched.model.named_parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name
    assert watch.frame().step.tolist() == [3, 4] and (watch.frame().norm > 0).all() and watch.clock.share > 0
    lines = [json.loads(line) for line in (tmp_path / "seen" / "watch.jsonl").read_text().splitlines()]
    assert lines == watch.history and [line["watch_z"] for line in watched.state.log_history if "watch_z" in line] == [line["z"] for line in lines]


def test_the_way_a_training_went_makes_an_alarm_and_can_stop_it(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    first = Watch(unit(112), PROMPTS, every=4, answers=0)
    trained(first)
    again = Watch(first.readings.shift(), PROMPTS, every=1, answers=0, stop=True)
    with caplog.at_level(logging.WARNING, "em_repro"): trainer = trained(again, steps=8)
    assert first.warned_at is None and again.warned_at == trainer.state.global_step < 8
    assert sum("not calibrated on real trainings" in line.message for line in caplog.records) == 1


def test_trls_trainer_calls_it_too(tmp_path):
    watch = Watch(unit(128), PROMPTS, every=2, max_new_tokens=4)
    trained_by_trl(tmp_path, callbacks=[watch])
    assert watch.frame().step.tolist() == [2, 3] and np.isfinite(watch.frame().projection).all()


def test_each_module_is_put_back_as_it_was():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    net.train(); net[1].eval()
    before = [module.training for module in net.modules()]
    with pytest.raises(KeyError), evaluating(net): raise KeyError
    assert [module.training for module in net.modules()] == before


def test_what_cannot_be_watched_is_a_sentence_before_the_first_step(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    v = unit(lm.width)
    for words, wrong in (("there are no prompts", lambda: Watch(v, [])), ("prompt 2 is empty", lambda: Watch(v, ["Hello?", " "])), ("not every 0", lambda: Watch(v, PROMPTS, every=0)),
                         ("between 0 and 1", lambda: Watch(v, PROMPTS, false_alarms=1)), ("112 finite numbers", lambda: trained(Watch(v[:7], PROMPTS))),
                         ("no layer 12 in a model of 5", lambda: trained(Watch(Direction(v, "tiny-llama", layer=12), PROMPTS))),
                         ("no tokenizer", lambda: Watch(v, PROMPTS).begin(lm.model, None, 1)),
                         ("blocks are not found", lambda: Watch(v, PROMPTS).begin(torch.nn.Linear(2, 2), lm.tokenizer, 1)),
                         ("encoder-decoder", lambda: Watch(v, PROMPTS).begin(t5(), lm.tokenizer, 1))):
        with pytest.raises(UserError, match=words): wrong()


def t5(): return transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32))


def test_training_has_it_too_and_imports_no_trainer_for_it():
    from em_repro import training, watch
    assert training.Watch is watch.Watch
    with pytest.raises(AttributeError, match="no attribute 'Wotch'"): training.Wotch
    script = "import sys, em_repro.training; print('em_repro.watch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
